(function () {
  "use strict";
  var tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.appendChild(tip);

  // The browser's own tooltip would lie over ours; the name that assistive technology reads stays.
  document.querySelectorAll(".contrast .pt").forEach(function (point) {
    var title = point.querySelector("title");
    point.setAttribute("aria-label", title.textContent);
    title.remove();
  });

  function show(point) {
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    var target = (point.querySelector(".dot") || point.querySelector(".hit")).getBoundingClientRect();
    var middle = target.left + target.width / 2;
    var left = Math.min(Math.max(8, middle - tip.offsetWidth / 2), document.documentElement.clientWidth - tip.offsetWidth - 8);
    var above = target.top - tip.offsetHeight - 10;
    tip.style.left = left + window.scrollX + "px";
    tip.style.top = (above > 60 ? above : target.bottom + 10) + window.scrollY + "px";
  }
  function hide() {
    tip.hidden = true;
  }
  function found(event) {
    return event.target.closest ? event.target.closest(".contrast .pt") : null;
  }
  document.addEventListener("pointerover", function (event) {
    var point = found(event);
    if (point) show(point);
    else if (!found({ target: document.activeElement })) hide();
  });
  document.addEventListener("focusin", function (event) {
    var point = found(event);
    if (point) show(point);
    else hide();
  });
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape") return hide();
    var line = event.target.closest ? event.target.closest(".contrast .arm") : null;
    if (!line || ["ArrowRight", "ArrowLeft", "Home", "End"].indexOf(event.key) < 0) return;
    var all = Array.from(line.querySelectorAll(".pt"));
    var at = all.indexOf(event.target.closest(".pt"));
    var to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? all.length - 1 : at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (all[to]) all[to].focus();
    event.preventDefault();
  });
})();
