// The data of one side, with what follows from it.

const KINDS = { g: "group", o: "operation", b: "body", r: "repeat", f: "function", i: "input", x: "output" };
const MARKS = { s: "same", c: "changed", o: "only", "-": "" };
const CATEGORIES = { p: "product", r: "reduce", m: "move", c: "control", e: "elementwise", "-": "" };

class Model {
  constructor(data) {
    Object.assign(this, data);
    const count = this.up.length;
    this.length = count;
    this.children = Array.from({ length: count }, () => []);
    for (let id = 1; id < count; id++) this.children[this.up[id]].push(id);
    this.end = new Int32Array(count);
    for (let id = count - 1; id >= 0; id--) {
      this.end[id] = Math.max(this.end[id], id + 1);
      if (id) this.end[this.up[id]] = Math.max(this.end[this.up[id]], this.end[id]);
    }
    this.opened = new Set(this.open);
    this.connect();
    this.tally();
  }

  // Edges between children of one box, and which boxes read from outside of it.
  connect() {
    this.edges = new Map();
    this.consumers = new Map();
    this.enters = new Uint8Array(this.length);
    this.exits = new Uint8Array(this.length);
    const seen = new Set();
    for (let id = 0; id < this.length; id++) {
      for (const producer of this.operands[id]) {
        if (producer < 0) continue;
        if (!this.consumers.has(producer)) this.consumers.set(producer, []);
        const known = this.consumers.get(producer);
        if (known[known.length - 1] !== id) known.push(id);
        let end = id, start = producer;
        while (!this.holds(this.up[end], start)) { this.enters[end] = 1; end = this.up[end]; }
        const outer = this.up[end];
        while (this.up[start] !== outer) { this.exits[start] = 1; start = this.up[start]; }
        const key = start * this.length + end;
        if (seen.has(key)) continue;
        seen.add(key);
        if (!this.edges.has(outer)) this.edges.set(outer, []);
        this.edges.get(outer).push([start, end]);
      }
    }
  }

  // How many operations inside each box are changed, or in this program only.
  tally() {
    this.changed = new Int32Array(this.length);
    this.only = new Int32Array(this.length);
    for (let id = this.length - 1; id >= 0; id--) {
      if (this.kind[id] === "o") {
        this.changed[id] += this.mark[id] === "c";
        this.only[id] += this.mark[id] === "o";
      }
      if (id) {
        this.changed[this.up[id]] += this.changed[id];
        this.only[this.up[id]] += this.only[id];
      }
    }
  }

  holds(outer, id) { return outer <= id && id < this.end[outer]; }
  text(column, id) { return this.texts[this[column][id]]; }
  kindOf(id) { return KINDS[this.kind[id]]; }
  markOf(id) { return MARKS[this.mark[id]]; }
  share(id) { return this.flops[0] ? this.flops[id] / this.flops[0] : 0; }
  isOpen(id) { return this.opened.has(id) && this.children[id].length > 0; }

  // The box itself, or what it is hidden in.
  seen(id) {
    let found = id;
    for (let at = this.up[id]; at >= 0; at = this.up[at]) if (!this.opened.has(at)) found = at;
    return found;
  }
  reveal(id) {
    for (let at = this.up[id]; at >= 0; at = this.up[at]) this.opened.add(at);
  }
  byPath(path) {
    if (!this.paths) {
      this.paths = new Map();
      for (let id = 1; id < this.length; id++) {
        const key = this.text("path", id);
        const known = this.paths.get(key);
        if (known === undefined || (this.kind[known] !== "g" && this.kind[id] === "g")) this.paths.set(key, id);
      }
    }
    return this.paths.get(path) ?? -1;
  }
  // What a search looks at: the path, and what is told of the box itself.
  words(id) {
    this.haystack ??= new Array(this.length);
    return (this.haystack[id] ??= [
      this.text("path", id), this.text("name", id), this.text("shape", id), this.text("source", id),
      ...this.operands[id].filter((one) => one < 0).map((one) => this.texts[~one]),
    ].join(" ").toLowerCase());
  }
}

const short = (number) => {
  for (const [factor, unit] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (number >= 0.9995 * factor) return Number((number / factor).toPrecision(3)) + unit;
  return String(number);
};
const bytesOf = (number) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (number >= 1000 && units.length > 1) { number /= 1024; units.shift(); }
  return Number(number.toPrecision(3)) + " " + units[0];
};
const percent = (share) =>
  share <= 0 ? "" : share < 0.001 ? "<0.1%" : Number((100 * share).toPrecision(2)) + "%";
// A line of code without most of the folders it is in.
const brief = (source) => source.replace(/^.*?([^/\\]+[/\\][^/\\]+:\d)/, "$1");
const element = (tag, attributes = {}, ...content) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  made.append(...content.filter((one) => one !== null && one !== undefined && one !== ""));
  return made;
};
