// Tables as files of comma-separated values: figures with all digits, gaps as empty cells.

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function csvOf(table) {
  const headings = [...table.tHead.rows[0].cells].map((cell) => cell.querySelector("button").textContent);
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.dataset.value ?? ""));
  return [headings, ...rows].map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
}

for (const button of document.querySelectorAll(".download")) {
  button.addEventListener("click", () => {
    const table = button.parentElement.previousElementSibling.querySelector("table");
    const address = URL.createObjectURL(new Blob([csvOf(table)], { type: "text/csv" }));
    element("a", { href: address, download: `${button.dataset.name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}
