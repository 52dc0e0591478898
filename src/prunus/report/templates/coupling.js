(function () {
  "use strict";
  document.querySelector("h1").appendChild(themeSwitch());

  var marked = Array.from(document.querySelectorAll("[data-g]"));
  var pinned = null;
  function keys(element) {
    return element.dataset.g.split(" ");
  }
  function light(wanted) {
    marked.forEach(function (element) {
      element.classList.toggle("lit", wanted !== null && keys(element).some(function (key) {
        return wanted.indexOf(key) >= 0;
      }));
    });
    document.querySelectorAll("svg.network").forEach(function (svg) {
      svg.classList.toggle("dim", wanted !== null);
    });
  }
  function found(event) {
    return event.target.closest ? event.target.closest('[data-g]:not([data-g="-"])') : null;
  }
  document.addEventListener("pointerover", function (event) {
    var element = found(event);
    light(element ? keys(element) : pinned);
  });
  document.addEventListener("click", function (event) {
    var element = found(event);
    var inside = element !== null && element.closest("svg.network") !== null;
    if (!inside) {
      if (element === null && event.target.closest("aside") === null) pinned = null;
      light(pinned);
      return;
    }
    pinned = keys(element);
    light(pinned);
    var entries = Array.from(document.querySelectorAll("aside details[data-g]"));
    var first = null;
    entries.forEach(function (entry) {
      var mine = keys(entry).some(function (key) {
        return pinned.indexOf(key) >= 0;
      });
      entry.open = mine;
      if (mine && first === null) first = entry;
    });
    var list = document.querySelector("aside");
    if (first !== null) list.scrollTop += first.getBoundingClientRect().top - list.getBoundingClientRect().top - 12;
  });
})();
