// Where boxes stand: the same as compiler/inspect/view/layout.py, for what is open.

const GAP_X = 18, GAP_Y = 30, LANE = 10, LANES = 12;
const WIDTH = 214, ROW = 44, PAD = 16, HEAD = 54;
const mean = (numbers) => (numbers.length ? numbers.reduce((a, b) => a + b, 0) / numbers.length : 0);
const largest = (numbers, otherwise) => numbers.reduce((a, b) => (a > b ? a : b), otherwise);
const least = (numbers, otherwise) => numbers.reduce((a, b) => (a < b ? a : b), otherwise);

// Lays out everything open inside a box: its size, and its children's places.
function measure(model, id) {
  const kids = model.children[id];
  const inner = kids.map((kid) => (model.isOpen(kid) ? measure(model, kid) : null));
  const sizes = inner.map((one) =>
    one ? [Math.max(one.width + 2 * PAD, WIDTH + 2 * PAD), one.height + HEAD + PAD] : [WIDTH, ROW]);
  const place = new Map(kids.map((kid, at) => [kid, at]));
  const edges = (model.edges.get(id) ?? []).map(([a, b]) => [place.get(a), place.get(b)]);
  const early = new Set(kids.map((_, at) => at).filter((at) => model.early[kids[at]] === "1"));
  return { id, kids, inner, sizes, ...arrange(sizes, edges, early) };
}

function arrange(sizes, edges, early) {
  const parents = sizes.map(() => []);
  for (const [start, end] of edges) if (start < end) parents[end].push(start);
  const [layer, side] = layers(parents, early);
  const rows = [];
  layer.forEach((number, box) => (rows[number] ??= []).push(box));
  const tops = [], bottoms = [];
  let y = 0;
  for (let at = 0; at < rows.length; at++) {
    rows[at] ??= [];
    tops.push(y);
    bottoms.push(y + largest(rows[at].map((box) => sizes[box][1]), 0));
    y = bottoms[at] + GAP_Y;
  }
  const x = columns(rows, parents, sizes, side);
  const left = least(x, Infinity) === Infinity ? 0 : least(x, Infinity);
  const right = largest(x.map((at, box) => at + sizes[box][0]), left);
  const middle = x.map((at, box) => at + sizes[box][0] / 2);
  const { lines, farLeft, farRight } = route(edges, layer, tops, bottoms, middle, left, right);
  return {
    places: x.map((at, box) => ({ x: at - farLeft, y: tops[layer[box]] })),
    lines: lines.map((line) => ({ ...line, lane: line.lane === null ? null : line.lane - farLeft })),
    width: farRight - farLeft,
    height: bottoms.length ? bottoms[bottoms.length - 1] : 0,
  };
}

function layers(parents, early) {
  const layer = new Array(parents.length).fill(null), side = new Set();
  parents.forEach((above, box) => {
    if (early.has(box) && above.every((one) => side.has(one))) side.add(box);
    else layer[box] = 1 + largest(above.filter((one) => !side.has(one)).map((one) => layer[one]), -1);
  });
  for (let box = parents.length - 1; box >= 0; box--) {
    const below = (layer[box] ??= 0);
    for (const parent of parents[box])
      if (side.has(parent)) layer[parent] = layer[parent] === null ? below - 1 : Math.min(layer[parent], below - 1);
  }
  const first = least(layer, Infinity);
  return [layer.map((number) => number - first), side];
}

function columns(rows, parents, sizes, side) {
  const middle = new Map();
  for (const row of rows) {
    const wanted = new Map(row.map((box) =>
      [box, mean(parents[box].filter((one) => middle.has(one)).map((one) => middle.get(one)))]));
    const way = row.filter((box) => !side.has(box)).sort((a, b) => wanted.get(a) - wanted.get(b));
    const at = new Map();
    let edge = -Infinity;
    for (const box of way) {
      at.set(box, Math.max(wanted.get(box) - sizes[box][0] / 2, edge));
      edge = at.get(box) + sizes[box][0] + GAP_X;
    }
    const drift = mean(way.map((box) => at.get(box) + sizes[box][0] / 2 - wanted.get(box)));
    edge = way.length ? edge - drift : 0;
    for (const box of way) middle.set(box, at.get(box) - drift + sizes[box][0] / 2);
    for (const box of row) {
      if (!side.has(box)) continue;
      middle.set(box, edge + sizes[box][0] / 2);
      edge += sizes[box][0] + GAP_X;
    }
  }
  return sizes.map((size, box) => middle.get(box) - size[0] / 2);
}

function route(edges, layer, tops, bottoms, middle, left, right) {
  const down = new Map(), up = new Map();
  for (const [start, end] of edges) {
    if (layer[end] > layer[start] + 1) down.set(start, Math.max(down.get(start) ?? 0, layer[end]));
    else if (layer[end] <= layer[start]) up.set(start, Math.min(up.get(start) ?? layer[start], layer[end]));
  }
  const half = (left + right) / 2 + 1;
  const spans = [...down].map(([box, end]) => [layer[box], box, end, middle[box] > half]);
  const back = [...up].map(([box, end]) => [end, -1 - box, layer[box] + 1, true]);
  const [lefts, farLeft] = lanes(spans.filter((one) => !one[3]));
  const [rights, farRight] = lanes([...spans, ...back].filter((one) => one[3]));
  const at = new Map();
  for (const [box, lane] of lefts) at.set(box, left - LANE * (lane + 1));
  for (const [box, lane] of rights) at.set(box, right + LANE * (lane + 1));
  const lines = edges.map(([start, end]) => {
    const back = layer[end] <= layer[start];
    const lane = layer[end] === layer[start] + 1 ? null : at.get(back ? -1 - start : start);
    return { start, end, leave: bottoms[layer[start]], enter: tops[layer[end]], lane, back };
  });
  const room = (count) => (count ? LANE * (count + 1) : 0);
  return { lines, farLeft: left - room(farLeft), farRight: right + room(farRight) };
}

function lanes(spans) {
  const ends = [], chosen = new Map();
  spans.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  for (const [begin, box, end] of spans) {
    let lane = ends.findIndex((until) => until <= begin);
    if (lane < 0 && ends.length < LANES) { lane = ends.length; ends.push(end); }
    if (lane < 0) lane = ends.indexOf(Math.min(...ends));
    ends[lane] = Math.max(end, ends[lane]);
    chosen.set(box, lane);
  }
  return [chosen, ends.length];
}
