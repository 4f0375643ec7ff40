// Finding boxes by words.

const MANY = 100;

class Search {
  constructor(app) {
    this.app = app;
    this.clear();
  }
  clear() {
    this.active = false;
    this.order = [];
    this.at = -1;
    this.matches = this.app.models.map(() => new Set());
    this.counts = this.app.models.map(() => null);
  }

  // A box is found if it has all words, and what it is inside of has not already.
  run(text) {
    this.clear();
    const words = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return;
    this.active = true;
    this.app.models.forEach((model, side) => {
      const above = new Uint8Array(model.length);
      for (let id = 1; id < model.length; id++) {
        const up = model.up[id], own = model.words(id);
        const inGroup = above[up] || this.has(model.text("path", up).toLowerCase(), words);
        above[id] = inGroup ? 1 : 0;
        if (!inGroup && this.has(own, words)) { this.matches[side].add(id); this.order.push([side, id]); }
      }
    });
    this.app.models.forEach((model, side) => {
      const counts = new Int32Array(model.length);
      for (const id of this.matches[side])
        for (let at = model.up[id]; at >= 0; at = model.up[at]) counts[at]++;
      this.counts[side] = counts;
      if (this.order.length <= MANY) for (const id of this.matches[side]) model.reveal(id);
    });
  }
  has(text, words) { return words.every((word) => text.includes(word)); }
  inside(side, id) { return this.counts[side]?.[id] ?? 0; }

  step(by) {
    if (!this.order.length) return;
    this.at = (this.at + by + this.order.length) % this.order.length;
    const [side, id] = this.order[this.at];
    this.app.select(side, id, true, false);
    this.tell();
  }
  tell() {
    const { length } = this.order;
    const told = !this.active ? "" : !length ? "nothing found" : this.at < 0 ? `${length} found` : `${this.at + 1} of ${length}`;
    document.getElementById("found").textContent = told;
  }
}
