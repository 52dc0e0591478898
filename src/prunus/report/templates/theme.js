function themeSwitch() {
  "use strict";
  var root = document.documentElement;
  var night = window.matchMedia("(prefers-color-scheme: dark)");
  var toggle = document.createElement("button");
  function dark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : night.matches;
  }
  function label() {
    toggle.textContent = dark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", "Switch to " + (dark() ? "light" : "dark") + " colours");
  }
  toggle.type = "button";
  toggle.addEventListener("click", function () {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  night.addEventListener("change", label);
  label();
  return toggle;
}
