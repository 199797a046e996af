// Names beside the points of a chart: each where it covers no other name and no point, with a line
// to its point where that is not next to it.

const LABEL = { size: 12, height: 15, gap: 9, near: 14 }; // px
const LONGEST = 0.42; // share of the plot's width that a name may have
const COVERING = 100; // px² that count beside the area where a name covers another one or a point
const CROSSING = 2; // the same for a line through another name or point
const DIRECTIONS = [[1, 0], [-1, 0], [1, -1], [1, 1], [-1, -1], [-1, 1], [0, -1], [0, 1]]; // right, down
const DISTANCES = [9, 16, 26, 38, 52, 68, 86, 106, 130, 160]; // px
const measure = document.createElement("canvas").getContext("2d");

// Returns what it costs that one box covers another one, 0 where it does not.
function covering(one, other) {
  const width = Math.min(one.right, other.right) - Math.max(one.left, other.left);
  const height = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
  return width > 0 && height > 0 ? COVERING + width * height : 0;
}

function boxAround(x, y, width, height) {
  return { left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2 };
}

// Returns the center of each name's box: of the nearest place with room, or the least bad one.
function placeLabels(points, widths, plot) {
  const taken = points.map(({ x, y }) => boxAround(x, y, 2 * LABEL.gap, 2 * LABEL.gap));
  const outside = (box) => plot.width * plot.height * Number(
    box.left < 0 || box.right > plot.width || box.top < 0 || box.bottom > plot.height,
  );
  return points.map((point, index) => {
    let best = { cost: Infinity };
    for (const place of placesAround(point, widths[index])) {
      const others = taken.filter((_, number) => number !== index);
      const cost = outside(place.box)
        + taken.reduce((sum, box) => sum + covering(box, place.box), 0)
        + CROSSING * others.filter((box) => crosses(point, place, box)).length;
      if (cost < best.cost) best = { ...place, cost };
      if (cost === 0) break;
    }
    taken.push(best.box);
    return best;
  });
}

// Returns true if the line from a point to its name, where there is one, leads through a box.
function crosses(point, place, box) {
  if (place.distance <= LABEL.near) return false;
  return [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9].some((share) => {
    const x = point.x + share * (place.x - point.x);
    const y = point.y + share * (place.y - point.y);
    return box.left < x && x < box.right && box.top < y && y < box.bottom;
  });
}

function* placesAround(point, width) {
  for (const distance of DISTANCES) {
    for (const [right, down] of DIRECTIONS) {
      const length = distance / Math.hypot(right, down);
      const x = point.x + right * (length + width / 2);
      const y = point.y + down * (length + LABEL.height / 2);
      yield { x, y, distance, box: boxAround(x, y, width, LABEL.height) };
    }
  }
}

function shorten(name, width) {
  let text = name;
  for (let kept = name.length - 1; kept > 2 && measure.measureText(text).width > width; kept -= 1) {
    text = `${name.slice(0, Math.ceil(kept / 2))}…${name.slice(-Math.floor(kept / 2))}`;
  }
  return text;
}

const escapeTags = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// Returns the names of a drawn chart's visible points as annotations of plotly.js.
function labelsOf(chart, { family, paper }) {
  const { xaxis, yaxis } = document.getElementById(chart)._fullLayout;
  const traces = document.getElementById(chart).data.filter(({ meta, visible }) => meta && visible);
  measure.font = `${LABEL.size}px ${family}`;
  const plot = { width: xaxis._length, height: yaxis._length };
  const names = traces.map(({ meta }) => shorten(meta.label, LONGEST * plot.width));
  const points = traces.map(({ x, y }) => ({ x: xaxis.d2p(x[0]), y: yaxis.d2p(y[0]) }));
  const places = placeLabels(points, names.map((name) => measure.measureText(name).width + 6), plot);
  return places.map(({ x, y, distance }, index) => ({
    text: escapeTags(names[index]),
    x: xaxis.type === "log" ? Math.log10(traces[index].x[0]) : traces[index].x[0],
    y: traces[index].y[0],
    ax: x - points[index].x,
    ay: y - points[index].y,
    arrowhead: 0,
    arrowwidth: 1,
    arrowcolor: distance > LABEL.near ? traces[index].line.color : "transparent",
    standoff: 6,
    bgcolor: paper,
    borderpad: 0,
    opacity: 0.9,
    captureevents: false,
  }));
}
