"use strict";
// Draws the charts in the page's theme, sorts tables and shows students' texts token by token.

const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();
const PHONE = 600; // px, width from which the window is none

// Charts

function theme() {
  const { color, borderTopColor: rule, fontFamily: family } = getComputedStyle(document.querySelector(".chart"));
  const { backgroundColor: paper } = getComputedStyle(document.body);
  return { color, rule, family, paper };
}

function layoutOf(chart, { color, rule, family, paper }) {
  const axis = { gridcolor: rule, zerolinecolor: rule, linecolor: rule, fixedrange: true, automargin: true, hoverformat: ".4~g" };
  return {
    margin: { l: 8, r: 12, t: 12, b: 8 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { color, family, size: 12 },
    hoverlabel: { bgcolor: paper, bordercolor: rule, font: { color, family } },
    showlegend: false,
    dragmode: false,
    ...chart.layout,
    xaxis: { ...axis, ...chart.layout.xaxis },
    yaxis: { ...axis, ...chart.layout.yaxis },
  };
}

// On phones the links to the sections leave the screen with the text, and the models' names stay.
function keepKeyInSight() {
  const nav = document.querySelector("nav");
  const left = innerWidth < PHONE ? nav.querySelector(".sections").offsetHeight : 0;
  nav.style.top = `${-left}px`;
  document.documentElement.style.scrollPaddingTop = `${nav.offsetHeight - left + 8}px`;
}

function drawCharts() {
  const colors = theme();
  keepKeyInSight();
  for (const chart of data.charts) {
    const traces = chart.traces.map((trace) => ({ ...trace, visible: !hidden.has(trace.legendgroup) }));
    const config = { responsive: true, displayModeBar: false };
    Plotly.react(chart.name, traces, layoutOf(chart, colors), config);
    if (traces.some(({ meta }) => meta)) Plotly.relayout(chart.name, { annotations: labelsOf(chart.name, colors) });
  }
}

let width = innerWidth;
addEventListener("resize", () => {
  if (width !== innerWidth) requestAnimationFrame(drawCharts); // names find other places
  width = innerWidth;
});

for (const button of document.querySelectorAll(".key button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!shown));
    hidden[shown ? "add" : "delete"](button.dataset.model);
    drawCharts();
  });
}

// Light and dark

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");

function setTheme(dark) {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  themeButton.setAttribute("aria-pressed", String(dark));
  drawCharts();
}

themeButton.addEventListener("click", () => setTheme(themeButton.getAttribute("aria-pressed") !== "true"));
prefersDark.addEventListener("change", () => setTheme(prefersDark.matches));

// Tables: a click on a heading sorts by it, largest figures or first names on top; the next click
// reverses the order.

const OPPOSITE = { ascending: "descending", descending: "ascending" };

function sortBy(heading) {
  const column = heading.cellIndex;
  const first = column === 0 ? "ascending" : "descending";
  const order = heading.ariaSort === first ? OPPOSITE[first] : first;
  for (const cell of heading.parentElement.cells) cell.ariaSort = cell === heading ? order : "none";
  const body = heading.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => [row.cells[column].dataset.value, row]);
  const known = rows.filter(([value]) => value !== undefined);
  known.sort(([left], [right]) => (order === "ascending" ? compare(left, right) : compare(right, left)));
  const unknown = rows.filter(([value]) => value === undefined); // last in both orders
  body.append(...[...known, ...unknown].map(([, row]) => row));
}

function compare(left, right) {
  const difference = Number(left) - Number(right);
  return Number.isNaN(difference) ? left.localeCompare(right) : difference;
}

for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

// Sentences

const texts = document.getElementById("texts");
const inspector = element("div", { id: "inspector", ariaLive: "polite" });
const list = document.getElementById("list");
const search = document.getElementById("search");
const percent = new Intl.NumberFormat("en", { style: "percent", maximumSignificantDigits: 2 });
const DARKEST_PROBABILITY = 1e-3; // lower probabilities have the same color
let chosen = data.readable[0]; // the student whose tokens are shown

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function entry(name, text) {
  return [element("dt", {}, name), element("dd", {}, text ?? "none")];
}

function showSentence() {
  const sentence = data.sentences[list.value];
  const entries = [...entry("source", sentence.source), ...entry("reference", sentence.reference)];
  if (sentence.teacher !== null) entries.push(...entry("teacher", sentence.teacher));
  for (const [run, text] of Object.entries(sentence.texts)) {
    if (!Object.hasOwn(sentence.tokens, run)) {
      entries.push(...entry(run, text));
      continue;
    }
    const pressed = String(run === chosen);
    const button = element("button", { type: "button", ariaPressed: pressed, textContent: run });
    button.dataset.run = run;
    const shown = run === chosen ? [...sentence.tokens[run].flatMap(tokenOf), inspector] : [text];
    entries.push(element("dt", {}, button), element("dd", {}, ...shown));
  }
  texts.replaceChildren(...entries);
  if (chosen) inspect(leastProbable(sentence.tokens[chosen]));
}

function leastProbable(tokens) {
  return tokens.reduce((least, token, index) => (token[1] < tokens[least][1] ? index : least), 0);
}

function tokenOf([text, probability, rank], index) {
  const word = text.trimStart();
  const label = `${word || "part of a character"}: ${percent.format(probability)}, rank ${rank}`;
  const made = element("span", { className: "token", role: "button", title: label }, word || "◌");
  made.ariaLabel = label;
  made.dataset.index = index;
  made.style.setProperty("--doubted", Math.min(1, Math.log(probability) / Math.log(DARKEST_PROBABILITY)));
  made.classList.toggle("other", rank > 1);
  made.classList.toggle("special", text.startsWith("⟨"));
  return [text.slice(0, text.length - word.length), made];
}

function inspect(index) {
  const [text, probability, rank, best] = data.sentences[list.value].tokens[chosen][index];
  for (const token of texts.querySelectorAll(".token")) {
    const current = token.dataset.index === String(index);
    token.ariaCurrent = String(current);
    token.tabIndex = current ? 0 : -1;
  }
  const alternatives = best.map(([other, likely]) => {
    const bar = element("i", {});
    bar.style.setProperty("--likely", likely);
    const parts = [element("b", {}, visible(other)), element("span", {}, percent.format(likely)), bar];
    return element("li", { className: other === text ? "own" : "" }, ...parts);
  });
  const choice = rank === 1 ? "its most probable token" : `rank ${rank}`;
  inspector.replaceChildren(
    element("p", {}, element("b", {}, visible(text)), ` ${percent.format(probability)}, ${choice}`),
    element("p", { className: "small" }, "the teacher's five most probable tokens"),
    element("ol", {}, ...alternatives),
  );
}

function visible(text) {
  return text.replace(/^ /, "␣") || "◌";
}

function indexOf(event) {
  const token = event.target.closest(".token");
  return token && Number(token.dataset.index);
}

for (const kind of ["mouseover", "focusin", "click"]) {
  texts.addEventListener(kind, (event) => {
    const index = indexOf(event);
    if (index !== null) inspect(index);
  });
}

texts.addEventListener("click", (event) => {
  const button = event.target.closest("[data-run]");
  if (!button) return;
  chosen = button.dataset.run;
  showSentence();
  texts.querySelector(`[aria-pressed="true"]`).focus();
});

texts.addEventListener("keydown", (event) => {
  const tokens = [...texts.querySelectorAll(".token")];
  const index = indexOf(event);
  if (index === null) return;
  const targets = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: tokens.length - 1 };
  const next = tokens[targets[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
});

function showList() {
  const words = search.value.toLowerCase();
  const options = data.sentences.flatMap((sentence, index) => {
    const all = [sentence.source, sentence.reference, ...Object.values(sentence.texts)];
    const found = all.some((text) => text.toLowerCase().includes(words));
    return found ? [new Option(`${sentence.number}  ${sentence.source}`, index)] : [];
  });
  list.replaceChildren(...options);
  document.getElementById("found").textContent = options.length;
  if (!options.length) return;
  list.selectedIndex = 0;
  showSentence();
}

if (list) {
  search.addEventListener("input", showList);
  list.addEventListener("change", showSentence);
  showList();
}
setTheme(prefersDark.matches);
