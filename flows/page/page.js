(() => {
  const KEYS = { 1: "pw-first", 2: "pw-second", 0: "pw-tie", s: "pw-abstain", u: "pw-undo", Escape: "pw-keep" };
  const PATIENCE = 10_000;
  let pressed = { turn: null, at: 0 };

  const turn = () => [...document.querySelectorAll("[data-turn]")].map((part) => part.dataset.turn).join();

  // One press for one sight of a pair: what comes before the next pair is shown was not meant for it.
  document.addEventListener(
    "click",
    (event) => {
      if (!event.target.closest?.(".pw-act")) return;
      const now = Date.now();
      if (pressed.turn === turn() && now - pressed.at < PATIENCE) {
        event.preventDefault();
        event.stopImmediatePropagation();
      } else {
        pressed = { turn: turn(), at: now };
      }
    },
    true,
  );

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (typing && event.key === "Escape") typing.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
    const digit = event.shiftKey ? "" : (event.code ?? "").replace(/^(Digit|Numpad)/, "");
    const id = KEYS[event.key] ?? KEYS[event.key.toLowerCase()] ?? KEYS[digit];
    const target = event.key === "r" ? document.querySelector("#pw-why textarea") : document.getElementById(id);
    if (!target?.offsetParent || target.disabled) return;
    event.preventDefault();
    if (event.key === "r") target.focus();
    else target.click();
  });
})();
