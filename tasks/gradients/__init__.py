"""Gradients of log pi(y|x), one vector a response: batched passes in torch, and sketches of what they give."""
