/* Sets light or dark before the first paint; the button cycles system, light, dark. A classic
   script in the head, because a module would run after the page has been painted. */
(() => {
  const KEY = "labsched.theme";
  const NEXT = { system: "light", light: "dark", dark: "system" };
  const WORDS = { system: "as the system", light: "light", dark: "dark" };
  const root = document.documentElement;

  const kept = () => {
    try {
      return localStorage.getItem(KEY) || "system";
    } catch {
      return "system"; // storage is closed in some private windows: the toggle works for this page
    }
  };

  const apply = (theme) => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.dataset.shows = theme;
      button.setAttribute("aria-label", `Colours: ${WORDS[theme]}. Change`);
      button.title = `Colours: ${WORDS[theme]}`;
    }
  };

  let theme = NEXT[kept()] ? kept() : "system";
  apply(theme);
  document.addEventListener("DOMContentLoaded", () => {
    apply(theme);
    document.addEventListener("click", (event) => {
      if (!event.target.closest("[data-theme-toggle]")) return;
      theme = NEXT[theme];
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        /* kept for this page only */
      }
      apply(theme);
    });
  });
})();
