(function () {
  "use strict";
  document.querySelector("nav .wrap").appendChild(themeSwitch());

  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      if (head.dataset.fixed !== undefined) return;
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(function (other) {
          if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        var body = table.tBodies[0];
        Array.from(body.rows)
          .map(function (row, at) {
            var cell = row.cells[column];
            var key = cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
            var number = parseFloat(key);
            return { row: row, at: at, text: key, number: number, none: key === "" || key === "nan" };
          })
          .sort(function (a, b) {
            if (a.none !== b.none) return a.none ? 1 : -1;
            var order = isNaN(a.number) || isNaN(b.number) ? a.text.localeCompare(b.text) : a.number - b.number;
            return (up ? order : -order) || a.at - b.at;
          })
          .forEach(function (entry) {
            body.appendChild(entry.row);
          });
      });
    });
  });

  document.querySelectorAll(".cmd").forEach(function (box) {
    if (!navigator.clipboard) return;
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", function () {
      navigator.clipboard.writeText(box.querySelector("code").textContent).then(function () {
        button.textContent = "Copied";
      });
    });
    box.appendChild(button);
  });

  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (one) {
      one.open = true;
    });
  });
})();
