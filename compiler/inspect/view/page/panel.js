// What is told of the selected box, and what the passes did.

class Panel {
  constructor(app, host) {
    Object.assign(this, { app, host });
    this.own = element("div", { id: "told" });
    this.passes = this.events();
    host.append(this.own, this.passes ?? "", this.help());
  }

  show(selected) {
    const parts = selected ? this.box(selected.side, selected.id) : this.whole();
    this.own.replaceChildren(...parts.flat().filter(Boolean));
  }

  whole() {
    const model = this.app.models[0];
    return this.app.models.length > 1 ? this.both() : [
      element("h3", {}, model.title),
      element("p", { class: "path" }, "Select a box to see its shapes, its cost and what it reads; click it again, or press Enter, to open it."),
      this.costs(0, 0),
    ];
  }
  both() {
    const [before, after] = this.app.models;
    const row = (name, told) => element("tr", {}, element("th", {}, name), element("td", {}, told(before)), element("td", {}, told(after)));
    return [
      element("table", {}, row("", (one) => one.title),
        row("operations", (one) => one.count[0].toLocaleString()),
        row("FLOPs", (one) => short(one.flops[0])),
        row("parameters", (one) => bytesOf(one.bytes[0]))),
      element("p", { class: "path" }, "Select a box to see it in both; click it again, or press Enter, to open it."),
    ];
  }
  help() {
    const colours = [["product", "product"], ["elementwise", "elementwise"], ["reduce", "reduction"], ["move", "moves data"], ["control", "has a body"]];
    const keys = [["↑ ↓", "move"], ["→ ←", "open, close"], ["Enter", "open or close"], ["/", "search"], ["[ ]", "one level"], ["+ −", "zoom"], ["f", "fit"]];
    return element("div", { id: "help" },
      element("h4", {}, "Colours and keys"),
      element("div", { class: "key" }, ...colours.map(([name, told]) =>
        element("span", {}, element("i", { style: `background:var(--${name})` }), told))),
      element("div", { class: "key" }, ...keys.map(([key, told]) => element("span", {}, element("kbd", {}, key), ` ${told}`))));
  }

  box(side, id) {
    const model = this.app.models[side], mark = model.markOf(id);
    const facts = element("dl", {});
    const fact = (name, value) => value && facts.append(element("dt", {}, name), element("dd", {}, value));
    fact("kind", model.kindOf(id));
    fact("gives", model.text("shape", id));
    fact("FLOPs", model.flops[id] ? `${model.flops[id].toLocaleString()} (${percent(model.share(id))})` : "");
    fact("exp, tanh …", model.transcendentals[id] ? model.transcendentals[id].toLocaleString() : "");
    fact("parameters", model.bytes[id] ? bytesOf(model.bytes[id]) : "");
    fact("operations", model.children[id].length ? model.count[id].toLocaleString() : "");
    fact("runs", model.times[id] > 1 ? `${model.times[id].toLocaleString()} times a call` : "");
    fact("note", model.text("note", id));
    fact("with", model.text("details", id));
    const source = model.text("source", id);
    fact("source", source && element("span", { title: source }, brief(source)));
    if (this.app.models.length > 1 && mark) {
      const only = `only in ${side ? "after" : "before"}`;
      const pair = model.pair[id];
      fact("compared", pair < 0 ? only : element("span", {}, `${mark}; `, this.link(1 - side, pair, `in ${side ? "before" : "after"}`)));
    }
    const { producers, consumers } = this.app.neighbours(model, id);
    const leaf = model.kind[id] === "o" || model.kind[id] === "x";
    return [
      element("h3", {}, model.text("name", id)),
      model.text("path", id) ? element("div", { class: "path" }, model.text("path", id)) : null,
      facts,
      leaf ? this.operands(side, id) : this.links(side, "Inputs", producers),
      this.links(side, "Outputs", consumers),
      this.leaves(side, id),
      this.costs(side, id),
    ];
  }

  operands(side, id) {
    const model = this.app.models[side];
    if (!model.operands[id].length) return null;
    return this.list("Inputs", model.operands[id], (one) => one >= 0
      ? [this.link(side, one), element("span", { class: "shape" }, model.text("shape", one))]
      : [element("span", {}, model.texts[~one]), element("span", { class: "shape" }, model.leaves[~one]?.[0] ?? "constant")]);
  }
  links(side, title, ids) {
    if (!ids.length) return null;
    const model = this.app.models[side];
    return this.list(title, ids, (one) => [this.link(side, one), element("span", { class: "shape" }, model.text("shape", one))]);
  }
  leaves(side, id) {
    const model = this.app.models[side], found = new Set();
    if (model.kind[id] === "o" && !model.children[id].length) return null;
    for (let at = id; at < model.end[id]; at++)
      for (const one of model.operands[at]) if (one < 0 && model.leaves[~one]) found.add(~one);
    if (!found.size) return null;
    return this.list(`Leaves read (${found.size})`, [...found], (one) =>
      [element("span", {}, model.texts[one]), element("span", { class: "shape" }, `${model.leaves[one][0]} ${bytesOf(model.leaves[one][1])}`)]);
  }
  costs(side, id) {
    const model = this.app.models[side];
    const kids = model.children[id].filter((one) => model.flops[one]).sort((a, b) => model.flops[b] - model.flops[a]);
    if (!kids.length) return null;
    return this.list("Cost", kids, (one) =>
      [this.link(side, one), element("span", { class: "shape" }, `${short(model.flops[one])} FLOPs  ${percent(model.share(one))}`)]);
  }

  list(title, items, row) {
    const made = element("ul", {});
    const add = (start, count) => {
      for (const item of items.slice(start, start + count)) made.append(element("li", {}, ...row(item)));
      const rest = items.length - start - count;
      if (rest > 0) {
        const more = element("li", {}, element("a", { onclick: () => { more.remove(); add(start + count, 200); } }, `${rest} more`));
        made.append(more);
      }
    };
    add(0, 12);
    return [element("h4", {}, title), made];
  }
  link(side, id, told) {
    const model = this.app.models[side];
    const path = model.text("path", id), name = model.text("name", id);
    const whole = model.kind[id] === "g" || !path ? path || name : `${path}/${name}`;
    const text = told ?? this.below(whole);
    const go = () => this.app.select(side, id);
    return element("a", { title: whole, tabindex: "0", role: "link", onclick: go, onkeydown: (e) => e.key === "Enter" && go() }, text);
  }

  // What of a path goes on from where the selected box is.
  below(path) {
    const { selected, models } = this.app;
    const names = path.split("/");
    const here = selected ? models[selected.side].text("path", selected.id).split("/") : [];
    let shared = 0;
    while (shared < names.length - 1 && names[shared] === here[shared]) shared++;
    return names.slice(shared).join("/");
  }

  events() {
    const { passes } = this.app.data;
    if (!passes.length) return null;
    return element("div", { id: "passes" }, element("h4", {}, "What the passes did"), ...passes.map((one) => {
      const made = element("details", { ...(passes.length < 3 ? { open: "" } : {}) },
        element("summary", {}, element("b", {}, one.step), ` ${one.fired.length} fired, ${one.skipped.length} skipped`));
      const fill = () => {
        if (!made.open || made.querySelector(".event")) return;
        for (const name of ["fired", "skipped"])
          if (one[name].length) made.append(...this.list(name, one[name], (event) => [this.event(name, ...event)]));
      };
      made.addEventListener("toggle", fill);
      fill();
      return made;
    }));
  }
  event(kind, path, what, source, at) {
    const known = at.some((id) => id >= 0);
    const go = () => at.forEach((id, side) => id >= 0 && this.app.select(side, id));
    const where = known
      ? element("a", { class: "where", tabindex: "0", role: "link", onclick: go, onkeydown: (e) => e.key === "Enter" && go() }, path)
      : element("span", { class: "where" }, path);
    return element("div", { class: `event ${kind}` }, where, what, source ? element("div", { class: "line", title: source }, brief(source)) : null);
  }
}
