// Puts the page together. The hash says what to show: #search=dense&expand=encoder

const by = (id) => document.getElementById(id);

class App {
  constructor(data) {
    this.data = data;
    this.models = data.sides.map((side) => new Model(side));
    this.selected = null;
    this.search = new Search(this);
    this.titles();
    this.canvases = this.models.map((model, number) => new Canvas(this, model, number, by("canvases")));
    this.panel = new Panel(this, by("panel"));
    this.listen();
    this.arrange();
    this.panel.show(null);
    this.follow();
  }

  arrange() {
    for (const canvas of this.canvases) canvas.layout();
    for (const canvas of this.canvases) canvas.begin();
  }

  titles() {
    const { counts } = this.data, host = by("titles");
    document.title = this.models.map((model) => model.title).join(" | ");
    if (!counts) return;
    const told = [["changed", "changed", "Δ"], ["only before", "before", "−"], ["only after", "after", "+"], ["same", "same", ""]];
    host.append(...told.map(([name, kind, sign]) =>
      element("span", { class: `count ${kind}`, "data-count": name }, `${sign}${counts[name].toLocaleString()} ${name}`)));
  }

  // Who a box reads from and who reads it, outside of itself.
  neighbours(model, id) {
    const producers = new Set(), consumers = new Set();
    for (let at = id; at < model.end[id]; at++) {
      for (const one of model.operands[at]) if (one >= 0 && !model.holds(id, one)) producers.add(one);
      for (const one of model.consumers.get(at) ?? []) if (!model.holds(id, one)) consumers.add(one);
    }
    return { producers: [...producers], consumers: [...consumers] };
  }

  select(side, id, move = true, note = true) {
    this.selected = id < 0 ? null : { side, id };
    const chosen = [[side, id]];
    const pair = id < 0 ? -1 : this.models[side].pair[id];
    if (pair >= 0 && this.models.length > 1) chosen.push([1 - side, pair]);
    for (const [at, one] of chosen) {
      if (one < 0) continue;
      const model = this.models[at], hidden = model.seen(one) !== one;
      if (hidden) { model.reveal(one); this.canvases[at].relayout(); }
      if (move || at !== side) this.canvases[at].show(one, hidden);
    }
    for (const canvas of this.canvases) canvas.mark();
    this.panel.show(this.selected);
    if (note) this.note();
  }

  toggle(side, id, open = !this.models[side].isOpen(id)) {
    const pairs = [[side, id]];
    const pair = this.models[side].pair[id];
    if (this.models.length > 1 && pair >= 0) pairs.push([1 - side, pair]);
    for (const [at, one] of pairs) {
      const { opened, children } = this.models[at];
      if (!children[one].length) continue;
      if (open) opened.add(one); else opened.delete(one);
      this.canvases[at].relayout(one);
    }
    this.panel.show(this.selected);
  }

  level(more) {
    for (const canvas of this.canvases) {
      const { model } = canvas;
      const shown = canvas.rects.filter((one) => model.children[one.id].length);
      if (more) for (const one of shown) model.opened.add(one.id);
      else {
        const open = shown.filter((one) => one.open);
        const deepest = open.reduce((a, b) => Math.max(a, b.depth), 0);
        for (const one of open) if (one.depth === deepest) model.opened.delete(one.id);
      }
      canvas.relayout();
    }
  }

  find(text) {
    this.search.run(text);
    for (const canvas of this.canvases) canvas.relayout();
    this.search.tell();
    this.first();
    this.note();
  }

  // Brings the first match of each side into view.
  first() {
    this.models.forEach((model, side) => {
      const found = this.search.order.find((one) => one[0] === side);
      if (found) this.canvases[side].show(model.seen(found[1]));
    });
  }

  key(event, side) {
    const canvas = this.canvases[side], { model } = canvas;
    const id = this.selected?.side === side ? this.selected.id : -1;
    const rows = canvas.rects, row = rows.findIndex((one) => one.id === id);
    const go = (to) => to >= 0 && to < rows.length && this.select(side, rows[to].id);
    const act = {
      ArrowDown: () => go(row + 1),
      ArrowUp: () => go(Math.max(row - 1, 0)),
      Home: () => go(0),
      End: () => go(rows.length - 1),
      ArrowRight: () => id >= 0 && (model.children[id].length && !model.isOpen(id) ? this.toggle(side, id) : go(row + 1)),
      ArrowLeft: () => {
        if (id < 0) return;
        if (model.isOpen(id)) this.toggle(side, id);
        else if (model.up[id] > 0) this.select(side, model.up[id]);
      },
      Enter: () => id >= 0 && this.toggle(side, id),
      " ": () => id >= 0 && this.toggle(side, id),
      Escape: () => this.select(side, -1),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
  }

  listen() {
    const box = by("search");
    let waiting = 0;
    box.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => this.find(box.value), 120); });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.search.step(event.shiftKey ? -1 : 1);
      if (event.key === "Escape") { box.value = ""; this.find(""); this.canvases[0].host.focus(); }
    });
    const each = (act) => () => this.canvases.forEach(act);
    const buttons = {
      previous: () => this.search.step(-1), next: () => this.search.step(1),
      less: () => this.level(false), more: () => this.level(true),
      in: each((one) => one.zoom(1.25)), out: each((one) => one.zoom(0.8)), fit: each((one) => one.fit()),
      theme: () => this.theme(document.documentElement.classList.contains("dark") ? "light" : "dark"),
    };
    for (const [name, act] of Object.entries(buttons)) by(name).addEventListener("click", act);
    const keys = { "/": () => box.focus(), "+": buttons.in, "=": buttons.in, "-": buttons.out, f: buttons.fit, "[": buttons.less, "]": buttons.more };
    document.addEventListener("keydown", (event) => {
      if (event.target === box || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    addEventListener("resize", () => this.canvases.forEach((one) => one.draw()));
    addEventListener("hashchange", () => this.follow());
    const system = matchMedia("(prefers-color-scheme: dark)");
    this.theme(system.matches ? "dark" : "light");
    system.addEventListener("change", () => this.theme(system.matches ? "dark" : "light"));
  }
  theme(name) { document.documentElement.classList.toggle("dark", name === "dark"); }

  // Does what the hash says.
  follow() {
    if (location.hash === this.noted) return;
    const asked = new URLSearchParams(location.hash.slice(1));
    if (asked.has("theme")) this.theme(asked.get("theme"));
    const paths = asked.has("expand") ? asked.get("expand").split(",") : [];
    for (const model of this.models) {
      for (const path of paths) {
        const id = model.byPath(path);
        if (path === "*") for (let at = 0; at < model.length; at++) model.opened.add(at);
        else if (id >= 0) { model.reveal(id); model.opened.add(id); }
      }
    }
    if (asked.has("search")) { by("search").value = asked.get("search"); this.search.run(asked.get("search")); this.search.tell(); }
    if (paths.length || asked.has("search")) this.arrange();
    this.first();
    const side = this.models.length > 1 && asked.get("side") === "after" ? 1 : 0;
    if (asked.has("select")) {
      const id = this.models[side].byPath(asked.get("select"));
      if (id >= 0) this.select(side, id, true, false);
    }
    if (asked.has("fit")) for (const canvas of this.canvases) canvas.fit();
  }
  // Keeps the hash a link to what is seen.
  note() {
    const told = new URLSearchParams();
    if (this.search.active) told.set("search", by("search").value);
    if (this.selected) {
      const path = this.models[this.selected.side].text("path", this.selected.id);
      if (path) told.set("select", path);
      if (this.selected.side) told.set("side", "after");
    }
    this.noted = told.size ? `#${told}` : "";
    try { history.replaceState(null, "", this.noted || "#"); } catch { this.noted = null; /* a notebook's frame has no address */ }
  }
}

window.app = new App(JSON.parse(by("data").textContent));
document.documentElement.dataset.ready = "true";
