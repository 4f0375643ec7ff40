// One side drawn: only what can be seen is in the document.

const SVG = "http://www.w3.org/2000/svg";
const shape = (tag, attributes) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

class Canvas {
  constructor(app, model, number, host) {
    Object.assign(this, { app, model, number });
    this.view = { x: 0, y: 0, scale: 1 };
    this.label = app.models.length > 1 ? ["before", "after"][number] : "";
    this.wires_ = shape("svg", { class: "wires", "aria-hidden": "true" });
    this.told = shape("svg", { class: "overlay", style: "z-index:99" });
    this.world = element("div", { class: "world" });
    this.host = element("div", {
      class: "canvas", tabindex: "0", role: "tree", "aria-label": model.title,
    }, this.world);
    const facts = `${model.count[0].toLocaleString()} operations · ${short(model.flops[0])} FLOPs · ` +
      `${bytesOf(model.bytes[0])} of parameters`;
    const title = element("h2", {}, element("b", {}, model.title), ` ${facts}`);
    const alone = app.models.length === 1;
    if (alone) document.getElementById("titles").append(...title.childNodes);
    host.append(element("section", { class: "side", "data-side": number }, alone ? "" : title, this.host));
    this.listen();
  }

  // Finds the place of everything that is open.
  layout() {
    this.rects = [];
    this.at = new Map();
    this.wires = [];
    const whole = measure(this.model, 0);
    this.width = whole.width;
    this.height = whole.height;
    this.put(whole, 0, 0, 0);
    this.boxes = new Map();
    this.world.replaceChildren(this.wires_, this.told);
  }

  put(group, x, y, depth) {
    group.kids.forEach((id, at) => {
      const [w, h] = group.sizes[at], open = group.inner[at];
      const rect = { id, x: x + group.places[at].x, y: y + group.places[at].y, w, h, depth, open: !!open };
      this.rects.push(rect);
      this.at.set(id, rect);
      if (open) this.put(open, rect.x + (w - open.width) / 2, rect.y + HEAD, depth + 1);
      if (depth) this.stubs(rect);
    });
    for (const line of group.lines) {
      const [a, b] = [this.at.get(group.kids[line.start]), this.at.get(group.kids[line.end])];
      const [leave, enter] = [y + line.leave, y + line.enter];
      const lane = line.lane === null ? null : x + line.lane;
      this.wires.push(wire(a, b, leave, enter, lane, line.back, this.model.early[a.id] === "1"));
    }
  }

  // Small circles where data comes from, or goes to, outside of the group.
  stubs(rect) {
    const [x, y, bottom] = [rect.x + rect.w / 2 - 20, rect.y, rect.y + rect.h];
    if (this.model.enters[rect.id])
      this.wires.push({ d: `M${x} ${y - 7}V${y}`, dot: [x, y - 9.5], x0: x, x1: x, y0: y - 12, y1: y, kind: "enter" });
    if (this.model.exits[rect.id])
      this.wires.push({ d: `M${x} ${bottom}v7`, dot: [x, bottom + 9.5], x0: x, x1: x, y0: bottom, y1: bottom + 12, kind: "exit" });
  }

  draw() {
    const { x, y, scale } = this.view;
    const [width, height] = [this.host.clientWidth, this.host.clientHeight];
    const margin = 120 / scale;
    const [left, top] = [-x / scale - margin, -y / scale - margin];
    const [right, bottom] = [(width - x) / scale + margin, (height - y) / scale + margin];
    this.world.style.transform = `translate(${x}px,${y}px) scale(${scale})`;
    const wanted = new Set();
    for (const rect of this.rects) {
      if (rect.x > right || rect.x + rect.w < left || rect.y > bottom || rect.y + rect.h < top) continue;
      if (rect.h * scale < 5) continue;
      wanted.add(rect.id);
      if (!this.boxes.has(rect.id)) this.boxes.set(rect.id, this.world.appendChild(this.box(rect)));
    }
    for (const [id, box] of this.boxes) if (!wanted.has(id)) { box.remove(); this.boxes.delete(id); }
    const seen = this.wires.filter((one) =>
      !(one.x0 > right || one.x1 < left || one.y0 > bottom || one.y1 < top) && (one.y1 - one.y0) * scale > 1);
    this.wires_.replaceChildren(...seen.flatMap((one) => [
      shape("path", { d: one.d, class: one.kind }),
      one.dot ? shape("circle", { cx: one.dot[0], cy: one.dot[1], r: 2.5 }) : null,
      one.tip ? shape("path", { d: one.tip, class: "tip" }) : null,
    ].filter(Boolean)));
    this.mark();
  }

  box(rect) {
    const { model } = this, { id } = rect;
    const kids = model.children[id].length, kind = model.kindOf(id);
    const classes = ["box", kind, CATEGORIES[model.category[id]], model.markOf(id), this.label];
    if (kids) classes.push("holds", rect.open ? "open" : "closed");
    const share = percent(model.share(id));
    const made = element("div", {
      class: classes.filter(Boolean).join(" "), role: "treeitem", id: `s${this.number}n${id}`,
      "aria-level": rect.depth + 1, "data-id": id, "data-path": model.text("path", id),
      "data-name": model.text("name", id), title: this.hint(id),
      style: `left:${rect.x}px;top:${rect.y}px;width:${rect.w}px;height:${rect.h}px;z-index:${rect.depth + 1}`,
    },
    element("div", { class: "row" },
      kids ? element("span", { class: "twist" }, rect.open ? "▾" : "▸") : null,
      element("span", { class: "name" }, model.text("name", id)),
      this.badge(id),
      model.share(id) >= 0.001 ? element("span", { class: "share" }, share) : null),
    element("div", { class: "row" }, ...this.second(id)));
    if (kids) made.setAttribute("aria-expanded", String(rect.open));
    if (model.share(id) >= 0.02 && !rect.open)
      made.append(element("div", { class: "bar", style: `width:${100 * model.share(id)}%` }));
    return made;
  }

  second(id) {
    const { model } = this;
    if ("grbf".includes(model.kind[id])) {
      const count = model.count[id];
      const facts = [count ? `${count.toLocaleString()} op${count === 1 ? "" : "s"}` : `${model.children[id].length} values`];
      if (model.kind[id] === "r") facts.unshift(model.text("note", id));
      if (model.flops[id]) facts.push(`${short(model.flops[id])} FLOPs`);
      if (model.bytes[id]) facts.push(bytesOf(model.bytes[id]));
      return [element("span", { class: "told" }, facts.join(" · "))];
    }
    const read = model.operands[id].filter((one) => one < 0 && model.leaves[~one]);
    const names = read.map((one) => model.texts[~one].split("/").slice(-2).join("/"));
    return [
      element("span", { class: "told" }, model.text("shape", id)),
      names.length ? element("span", { class: "told leaf" }, names.join(", ")) : null,
    ].filter(Boolean);
  }

  badge(id) {
    const { model } = this;
    if (!this.label) return null;
    const sign = this.number ? "+" : "−", kind = this.number ? "plus" : "minus";
    const holds = model.children[id].length;
    const parts = [];
    const count = (number) => (holds ? number : "");
    if (model.changed[id]) parts.push(element("span", { class: "tilde" }, `Δ${count(model.changed[id])}`));
    if (model.only[id]) parts.push(element("span", { class: kind }, ` ${sign}${count(model.only[id])}`));
    return parts.length ? element("span", { class: "badge" }, ...parts) : null;
  }

  hint(id) {
    const { model } = this;
    return [model.text("path", id), model.text("name", id), model.text("shape", id), brief(model.text("source", id))]
      .filter(Boolean).join("\n");
  }

  // Classes that change without a new layout: the selection and what was searched for.
  mark() {
    const { selected, search } = this.app;
    const chosen = selected && selected.side === this.number ? selected.id : -1;
    const matches = search.matches[this.number];
    for (const [id, box] of this.boxes) {
      box.classList.toggle("selected", id === chosen);
      box.setAttribute("aria-selected", String(id === chosen));
      box.classList.toggle("match", matches.has(id));
      box.classList.toggle("has", !matches.has(id) && !this.model.isOpen(id) && search.inside(this.number, id) > 0);
    }
    this.host.classList.toggle("searching", search.active);
    if (this.boxes.has(chosen)) this.host.setAttribute("aria-activedescendant", `s${this.number}n${chosen}`);
    else this.host.removeAttribute("aria-activedescendant");
    this.tell(chosen);
  }

  // Draws where the selected box's data comes from and goes to, however far.
  tell(id) {
    const found = new Set();
    if (id >= 0 && this.at.has(id)) {
      const { producers, consumers } = this.app.neighbours(this.model, id);
      const link = (from, to) => {
        const [a, b] = [this.model.seen(from), this.model.seen(to)];
        if (a !== b && !this.model.holds(a, b) && !this.model.holds(b, a)) found.add(`${a} ${b}`);
      };
      for (const one of producers.slice(0, 200)) link(one, id);
      for (const one of consumers.slice(0, 200)) link(id, one);
    }
    this.told.replaceChildren(...[...found].map((pair) => {
      const [a, b] = pair.split(" ").map((one) => this.at.get(Number(one)));
      const [x1, y1, x2, y2] = [a.x + a.w / 2, a.y + a.h, b.x + b.w / 2, b.y];
      const bend = Math.max(18, Math.min(90, Math.abs(y2 - y1) / 2));
      return shape("path", { class: "told", d: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}` });
    }));
  }

  fit() {
    const [width, height] = [this.host.clientWidth, this.host.clientHeight];
    const scale = Math.max(0.05, Math.min(1, (width - 40) / this.width, (height - 40) / this.height));
    this.view = { scale, x: (width - this.width * scale) / 2, y: Math.max(20, (height - this.height * scale) / 2) };
    this.draw();
  }
  natural() { return Math.max(this.label ? 0.55 : 0.7, Math.min(1, (this.host.clientWidth - 40) / this.width)); }
  begin() {
    const width = this.host.clientWidth;
    const scale = Math.min(...this.app.canvases.map((one) => one.natural()));
    this.view = { scale, y: 24, x: Math.max((width - this.width * scale) / 2, 24) };
    const first = this.rects.find((one) => one.depth === 0);
    if (this.width * scale > width && first) this.view.x = width / 2 - (first.x + first.w / 2) * scale;
    this.draw();
  }
  zoom(factor, x = this.host.clientWidth / 2, y = this.host.clientHeight / 2) {
    const scale = Math.max(0.03, Math.min(2.5, this.view.scale * factor));
    const by = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * by, y: y - (y - this.view.y) * by };
    this.draw();
  }
  // Moves the view so that a box can be seen, no further than needed.
  show(id, middle = false) {
    const rect = this.at.get(id);
    if (!rect) return;
    const { scale } = this.view, edge = 30;
    const move = (at, size, room) => {
      if (middle || size > room) return size > room - 2 * edge ? edge - at : (room - size) / 2 - at;
      if (at < edge) return edge - at;
      return at + size > room - edge ? room - edge - at - size : 0;
    };
    if (middle && scale < 0.5) this.zoom(0.8 / scale);
    const now = this.view;
    const height = rect.open ? HEAD : rect.h;
    now.x += move(now.x + rect.x * now.scale, rect.w * now.scale, this.host.clientWidth);
    now.y += move(now.y + rect.y * now.scale, height * now.scale, this.host.clientHeight);
    this.draw();
  }
  // Lays out again with one box staying where it is on the screen.
  relayout(anchor = -1) {
    const before = this.at.get(this.model.seen(anchor));
    this.layout();
    this.draw();
    const after = anchor >= 0 && this.at.get(this.model.seen(anchor));
    if (!before || !after) return;
    this.view.x += (before.x + before.w / 2 - after.x - after.w / 2) * this.view.scale;
    this.view.y += (before.y - after.y) * this.view.scale;
    this.draw();
  }

  listen() {
    let from = null;
    const { host } = this;
    host.addEventListener("wheel", (event) => {
      event.preventDefault();
      const frame = host.getBoundingClientRect();
      if (event.ctrlKey || event.metaKey)
        return this.zoom(Math.exp(-event.deltaY / 250), event.clientX - frame.left, event.clientY - frame.top);
      this.view.x -= event.shiftKey ? event.deltaY : event.deltaX;
      this.view.y -= event.shiftKey ? 0 : event.deltaY;
      this.draw();
    }, { passive: false });
    host.addEventListener("pointerdown", (event) => {
      from = { x: event.clientX, y: event.clientY, view: { ...this.view }, moved: false };
    });
    host.addEventListener("pointermove", (event) => {
      if (!from || !event.buttons) return;
      const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
      if (!from.moved && Math.hypot(dx, dy) < 4) return;
      if (!from.moved) host.setPointerCapture(event.pointerId);
      from.moved = true;
      this.view.x = from.view.x + dx;
      this.view.y = from.view.y + dy;
      this.draw();
    });
    host.addEventListener("click", (event) => {
      const moved = from?.moved;
      from = null;
      const box = event.target.closest(".box");
      if (moved) return;
      if (!box) return this.app.select(this.number, -1);
      const id = Number(box.dataset.id), chosen = this.app.selected;
      const again = chosen?.id === id && chosen.side === this.number;
      const head = event.clientY - box.getBoundingClientRect().top < HEAD * this.view.scale;
      if (!again) this.app.select(this.number, id, false);
      if (event.target.closest(".twist") || (again && head)) this.app.toggle(this.number, id);
    });
    host.addEventListener("keydown", (event) => this.app.key(event, this.number));
  }
}

// The way of an edge, with its arrow's tip and the room it takes.
function wire(a, b, leave, enter, lane, back, early) {
  const [x1, y1, x2, y2] = [a.x + a.w / 2, a.y + a.h, b.x + b.w / 2, b.y];
  const g = GAP_Y, stop = y2 - 5;
  let d = `M${x1} ${y1}V${leave}`;
  if (lane === null) d += `C${x1} ${leave + g * 0.6} ${x2} ${enter - g * 0.6} ${x2} ${stop}`;
  else if (back) d += `C${x1} ${leave + g} ${lane} ${leave + g} ${lane} ${leave}V${enter}C${lane} ${enter - g} ${x2} ${enter - g} ${x2} ${stop}`;
  else d += `C${x1} ${leave + g * 0.7} ${lane} ${leave + g * 0.3} ${lane} ${leave + g}V${enter - g}C${lane} ${enter - g * 0.3} ${x2} ${enter - g * 0.7} ${x2} ${stop}`;
  const xs = [x1, x2, lane ?? x1];
  return {
    d, tip: `M${x2 - 3.5} ${y2 - 6}h7l-3.5 6z`, kind: (back ? "back " : "") + (early ? "early" : ""),
    x0: Math.min(...xs), x1: Math.max(...xs), y0: Math.min(y1, y2) - g, y1: Math.max(y1, y2) + g,
  };
}
