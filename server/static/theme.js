// Light, dark, or as the system: set before the first paint, hence no module.

{
  const CHOICES = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" };
  const root = document.documentElement;

  const remembered = () => {
    try {
      return localStorage.getItem("masc.theme");
    } catch {
      return null; // storage may be forbidden
    }
  };

  const apply = (choice) => {
    root.dataset.theme = choice in CHOICES ? choice : "auto";
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = CHOICES[root.dataset.theme];
      button.ariaLabel = `Colours: ${root.dataset.theme}`;
    }
  };

  const next = () => {
    const names = Object.keys(CHOICES);
    apply(names[(names.indexOf(root.dataset.theme) + 1) % names.length]);
    try {
      localStorage.setItem("masc.theme", root.dataset.theme);
    } catch {
      // it lasts as long as the page
    }
    root.dispatchEvent(new Event("theme"));
  };

  apply(remembered());
  addEventListener("DOMContentLoaded", () => {
    apply(root.dataset.theme);
    document.getElementById("theme").addEventListener("click", next);
  });
}
