// The tabs of the page, by mouse and by keyboard; and its language, which gradio sets to the browser's.
(() => {
  const html = document.documentElement;
  const speakEnglish = () => { if (html.lang !== "en") html.lang = "en"; };
  new MutationObserver(speakEnglish).observe(html, { attributes: true, attributeFilter: ["lang"] });
  speakEnglish();

  const tabs = () => [...document.querySelectorAll("#lesion-head [role=tab]")];
  window.showLesionTab = (name) => {
    document.body.dataset.tab = name;
    for (const tab of tabs()) {
      const chosen = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      const panel = document.getElementById(tab.getAttribute("aria-controls"));
      panel?.setAttribute("role", "tabpanel");
      panel?.setAttribute("aria-labelledby", tab.id);
    }
    window.dispatchEvent(new CustomEvent("lesion-tab", { detail: name }));
  };
  document.addEventListener("click", (event) => {
    const tab = event.target.closest?.("#lesion-head [role=tab]");
    if (tab) window.showLesionTab(tab.id.replace("tab-", ""));
  });
  document.addEventListener("keydown", (event) => {
    const all = tabs(), at = all.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -at, End: all.length - 1 - at }[event.key];
    if (at < 0 || step === undefined) return;
    event.preventDefault();
    const next = all[(at + step + all.length) % all.length];
    next.focus();
    next.click();
  });
  const ready = () => {
    if (!tabs().length) return;
    waiting.disconnect();
    window.showLesionTab("lesion");
  };
  const waiting = new MutationObserver(ready);
  waiting.observe(html, { childList: true, subtree: true });
  ready();
})();
