// Two models side by side: wins, losses and the pairs with the largest differences.

const compared = data.comparison;
const [first, second] = ["first", "second"].map((id) => document.getElementById(id));

// Returns wins, losses, largest wins and largest losses of one system over another one.
function comparisonOf(one, other) {
  const count = compared.systems.length;
  const [low, high] = [one, other].sort((left, right) => left - right);
  const before = low * count - (low * (low + 1)) / 2; // comparisons of the systems above
  const [wins, losses, best, worst] = compared.comparisons[before + high - low - 1];
  return one < other ? [wins, losses, best, worst] : [losses, wins, worst, best];
}

const normalized = (word) => word.toLowerCase().replace(/[^\p{L}\p{M}\p{N}]/gu, "");

// Returns the words of a text, those that the reference lacks marked.
function wordsOf(text, reference) {
  const known = new Set(reference.split(/\s+/).map(normalized));
  return text.split(/(\s+)/).map((word) => (
    known.has(normalized(word)) || !word.trim() ? word : element("span", { className: "stray" }, word)
  ));
}

function differenceOf(index, one, other) {
  const { source, reference, written } = compared.texts[index];
  const entries = [...entry("source", source), ...entry("reference", reference)];
  for (const system of [one, other]) {
    const [text, score] = written[system];
    const name = `${compared.systems[system]}, chrF ${score.toFixed(1)}`;
    entries.push(element("dt", {}, name), element("dd", {}, ...wordsOf(text, reference)));
  }
  return element("li", {}, element("dl", {}, ...entries));
}

function showComparison() {
  const [one, other] = [first.selectedIndex, second.selectedIndex];
  const [name, otherName] = [compared.systems[one], compared.systems[other]];
  const [wins, losses, best, worst] = one === other ? [0, 0, [], []] : comparisonOf(one, other);
  const counts = { wins, ties: compared.pairs - wins - losses, losses };
  for (const [kind, number] of Object.entries(counts)) {
    document.querySelector(`#balance .${kind}`).style.flexGrow = number;
  }
  const verdict = `${name} is better at ${wins}, ${otherName} at ${losses} of ${compared.pairs} pairs; `
    + `${counts.ties} are equal.`;
  document.getElementById("verdict").textContent = verdict;
  document.getElementById("balance").ariaLabel = verdict;
  for (const [id, better, indices] of [["wins", name, best], ["losses", otherName, worst]]) {
    document.getElementById(`${id}-heading`).textContent = `Where ${better} is better`;
    const shown = indices.map((index) => differenceOf(index, one, other));
    document.getElementById(id).replaceChildren(...(shown.length ? shown : [element("li", {}, "nowhere")]));
  }
}

if (first) {
  const students = compared.systems.length > 2 && compared.systems[0] === "teacher" ? 1 : 0;
  for (const [index, select] of [first, second].entries()) {
    select.append(...compared.systems.map((system) => new Option(system)));
    select.selectedIndex = students + index;
    select.addEventListener("change", showComparison);
  }
  showComparison();
}
