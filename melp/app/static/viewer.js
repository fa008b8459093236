// <melp-ecg>: ECGs on paper, as vectors: layouts, zoom, pan, leads on and off, calipers in ms and mV, evidence as tint.
//
// `data` is JSON: {traces: [{name, rate, start, leads: {NAME: base64 of int16 microvolts}, derived: [NAME], marks: [s]}],
// seconds, layouts: [NAME]}. A second trace is drawn over the same paper (Compare). Nothing is fetched from anywhere.
// <melp-evidence target="ID" data="..."> tints the paper of the <melp-ecg> with that id.
(() => {
  if (customElements.get("melp-ecg")) return;
  const MM_S = 25, MM_MV = 10, LEFT = 15, RIGHT = 5, TOP = 5;
  const ROWS = {
    "3x4": [["I", "aVR", "V1", "V4"], ["II", "aVL", "V2", "V5"], ["III", "aVF", "V3", "V6"]],
    "6x2": [["I", "V1"], ["II", "V2"], ["III", "V3"], ["aVR", "V4"], ["aVL", "V5"], ["aVF", "V6"]],
    "12x1": ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"].map((lead) => [lead]),
  };
  const NAMES = { "3x4": "3 x 4", "6x2": "6 x 2", "12x1": "12 x 1" };
  const LEADS = ROWS["12x1"].flat();
  const SPACE = { "3x4": 30, "6x2": 20, "12x1": 15 };
  const RHYTHM = ["II", "V1", "V5", "I"];
  const LEAST = 3; // px per mm: below this the small squares run together, and the paper scrolls instead
  const SVG = "http://www.w3.org/2000/svg";

  const make = (tag, attributes, parent) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (parent) parent.append(node);
    return node;
  };
  const samples = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Int16Array(bytes.buffer);
  };
  const median = (row) => {
    const known = Float64Array.from(row.filter((value) => value !== -32768)).sort();
    return known.length ? known[known.length >> 1] : 0;
  };

  const STYLE = `
    :host { display: block; color: var(--ecg-text, #1a1a1a); font: 14px/1.4 system-ui, sans-serif; }
    .bar { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; margin: 0 0 8px; }
    fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
    legend { float: left; padding: 0 6px 0 0; color: var(--ecg-muted, #555); font-size: 13px; }
    button { font: inherit; font-size: 13px; min-height: 30px; min-width: 32px; padding: 2px 9px; border-radius: 6px;
      border: 1px solid var(--ecg-line, #8a8f98); background: var(--ecg-button, #fff); color: inherit; cursor: pointer; }
    button[aria-pressed="true"] { background: var(--ecg-on, #0b5cad); border-color: var(--ecg-on, #0b5cad);
      color: #fff; }
    button:disabled { opacity: 0.45; cursor: default; text-decoration: line-through; }
    button:focus-visible, .paper:focus-visible { outline: 3px solid var(--ecg-focus, #e69f00); outline-offset: 1px; }
    .paper { overflow: auto; max-height: min(74vh, 900px); background: var(--ecg-paper, #fffdfc);
      border: 1px solid var(--ecg-line, #8a8f98); border-radius: 6px; cursor: grab; }
    .paper.measuring { cursor: crosshair; touch-action: none; }
    .paper.dragging { cursor: grabbing; }
    svg { display: block; user-select: none; -webkit-user-select: none; }
    .minor { stroke: var(--ecg-minor, #f6d5d2); } .major { stroke: var(--ecg-major, #e59d96); }
    .trace { fill: none; stroke: var(--ecg-trace, #101010); stroke-width: 1.25px; vector-effect: non-scaling-stroke;
      stroke-linejoin: round; }
    .trace.second { stroke: var(--ecg-second, #0b5cad); }
    text { fill: var(--ecg-trace, #101010); font-weight: 600; paint-order: stroke; stroke: var(--ecg-paper, #fffdfc);
      stroke-width: 0.25em; stroke-linejoin: round; }
    .tint { fill: var(--ecg-tint, #0b5cad); } .tinted { stroke: var(--ecg-tint, #0b5cad); stroke-width: 3px;
      vector-effect: non-scaling-stroke; }
    .caliper { fill: var(--ecg-caliper, #d55e00); fill-opacity: 0.12; stroke: var(--ecg-caliper, #d55e00);
      stroke-width: 1.5px; vector-effect: non-scaling-stroke; }
    .corner { fill: var(--ecg-caliper, #d55e00); }
    .foot { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 6px; font-size: 13px;
      color: var(--ecg-muted, #555); }
    output { font-weight: 600; color: var(--ecg-text, #1a1a1a); font-variant-numeric: tabular-nums; }
    .key::before { content: ""; display: inline-block; width: 22px; border-top: 3px solid var(--ecg-trace, #101010);
      margin-right: 6px; vertical-align: middle; }
    .key.second::before { border-color: var(--ecg-second, #0b5cad); }
  `;

  class MelpEcg extends HTMLElement {
    static observedAttributes = ["data"];
    constructor() {
      super();
      this.attachShadow({ mode: "open" });
      this.off = new Set();
      this.zoom = 1;
      this.resizing = new ResizeObserver(() => this.scale());
    }
    connectedCallback() { this.load(); }
    disconnectedCallback() { this.resizing.disconnect(); }
    attributeChangedCallback() { if (this.isConnected) this.load(); }

    load() {
      const text = this.getAttribute("data");
      if (text === this.loaded) return;
      this.loaded = text;
      this.ecg = JSON.parse(text);
      this.evidence = null;
      this.caliper = null;
      this.off.clear();
      for (const trace of this.ecg.traces) {
        for (const lead of Object.keys(trace.leads)) {
          const row = samples(trace.leads[lead]);
          trace.leads[lead] = { row, level: median(row) };
        }
      }
      this.layout = this.ecg.layouts[0];
      this.build();
      this.draw();
    }

    build() {
      const root = this.shadowRoot;
      root.innerHTML = `<style>${STYLE}</style><div class="bar"></div>
        <div class="paper" tabindex="0" role="application"></div><div class="foot"></div>`;
      this.paper = root.querySelector(".paper");
      const bar = root.querySelector(".bar");
      const group = (label) => {
        const set = document.createElement("fieldset");
        const legend = document.createElement("legend");
        legend.textContent = label;
        set.append(legend);
        bar.append(set);
        return (name, label, act, pressed) => {
          const button = document.createElement("button");
          button.type = "button";
          button.textContent = name;
          if (label) { button.setAttribute("aria-label", label); button.title = label; }
          if (pressed !== undefined) button.setAttribute("aria-pressed", pressed);
          button.addEventListener("click", () => act(button));
          set.append(button);
          return button;
        };
      };
      if (this.ecg.layouts.length > 1) {
        const add = group("Layout");
        const buttons = this.ecg.layouts.map((layout) =>
          add(NAMES[layout] || layout, "", (button) => {
            this.layout = layout;
            for (const other of buttons) other.setAttribute("aria-pressed", other === button);
            this.draw();
          }, layout === this.layout));
      }
      const zoom = group("Zoom");
      zoom("−", "Zoom out", () => this.zoomBy(1 / 1.25));
      zoom("+", "Zoom in", () => this.zoomBy(1.25));
      zoom("Fit", "Fit to the width", () => { this.zoom = 1; this.scale(); });
      if (!this.ecg.plain) {
        const measure = group("Measure");
        this.measureButton = measure("Calipers", "Calipers: drag on the paper, or move with the arrow keys", (button) => {
          this.measuring = !this.measuring;
          button.setAttribute("aria-pressed", this.measuring);
          this.paper.classList.toggle("measuring", this.measuring);
          if (!this.measuring) { this.caliper = null; this.drawCaliper(); } else this.paper.focus();
        }, false);
        const lead = group("Leads");
        const there = new Set(this.ecg.traces.flatMap((trace) => Object.keys(trace.leads)));
        for (const name of LEADS) {
          const button = lead(name, "", (pressed) => {
            if (!this.off.delete(name)) this.off.add(name);
            pressed.setAttribute("aria-pressed", !this.off.has(name));
            this.draw();
          }, there.has(name));
          button.disabled = !there.has(name);
        }
      }
      const foot = root.querySelector(".foot");
      const paper = document.createElement("span");
      paper.textContent = `${MM_S} mm/s   ${MM_MV} mm/mV   unfiltered`;
      foot.append(paper);
      this.ecg.traces.forEach((trace, index) => {
        if (this.ecg.traces.length < 2) return;
        const key = document.createElement("span");
        key.className = index ? "key second" : "key";
        key.textContent = trace.name;
        foot.append(key);
      });
      this.readout = document.createElement("output");
      this.readout.setAttribute("aria-live", "polite");
      foot.append(this.readout);
      this.listen();
      this.resizing.disconnect();
      this.resizing.observe(this);
    }

    // ------------------------------------------------------------------------------------------------------ drawing

    layOut() {
      const seconds = this.ecg.seconds, have = this.ecg.traces[0].leads;
      const custom = this.layout.includes(",") || !ROWS[this.layout];
      let rows = custom ? this.layout.split(",").map((lead) => [lead]) : ROWS[this.layout];
      if (this.layout === "3x4" || this.layout === "6x2") {
        const rhythm = RHYTHM.find((lead) => have[lead]);
        if (rhythm) rows = [...rows, [rhythm]];
      }
      const space = (SPACE[this.layout] || 20) * (this.ecg.apart ? 1.5 : 1);
      const panels = [];
      rows.forEach((row, number) => {
        const part = seconds / row.length;
        const top = TOP + number * space, base = top + 5 * Math.round((0.55 * space) / 5);
        row.forEach((lead, column) => panels.push({
          lead, left: LEFT + column * part * MM_S, base, top, space, start: column * part, stop: (column + 1) * part,
          first: column === 0,
        }));
      });
      return { panels, width: LEFT + seconds * MM_S + RIGHT, height: TOP + rows.length * space + TOP };
    }

    draw() {
      Object.assign(this, this.layOut());
      const { width, height } = this;
      const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
      svg.setAttribute("aria-label", this.ecg.label || "ECG");
      for (const [kind, step, thick] of [["minor", 1, 0.12], ["major", 5, 0.22]]) {
        let d = "";
        for (let x = LEFT % step; x <= width; x += step) d += `M${x} 0V${height}`;
        for (let y = 0; y <= height; y += step) d += `M0 ${y}H${width}`;
        make("path", { class: kind, d, "stroke-width": thick }, svg);
      }
      this.tints = make("g", {}, svg);
      for (const panel of this.panels) {
        if (panel.first) {
          make("path", { class: "trace", d: `M3 ${panel.base}h2v-10h5v10h2` }, svg);
        } else {
          make("path", { class: "trace", d: `M${panel.left} ${panel.base - 3}v6` }, svg);
        }
        this.ecg.traces.forEach((trace, index) => {
          if (this.off.has(panel.lead) || !trace.leads[panel.lead]) return;
          const shift = this.ecg.apart && index ? (panel.space / 3) : this.ecg.apart ? -panel.space / 6 : 0;
          make("path", { class: index ? "trace second" : "trace", d: this.path(trace, panel, shift),
            "data-lead": panel.lead }, svg);
        });
        const derived = this.ecg.traces[0].derived?.includes(panel.lead), have = this.ecg.traces[0].leads[panel.lead];
        const label = make("text", { x: panel.left + 1, y: panel.base - 6.5, class: "label" }, svg);
        label.textContent = panel.lead + (this.off.has(panel.lead) ? " (off)" : !have ? " (absent)" : derived ? " (derived)" : "");
      }
      this.marks = make("g", {}, svg);
      this.paper.replaceChildren(svg);
      this.svg = svg;
      this.scale();
      this.drawEvidence();
      this.drawCaliper();
    }

    path(trace, panel, shift) {
      const { row, level } = trace.leads[panel.lead], rate = trace.rate, offset = trace.start || 0;
      const first = Math.max(0, Math.round((panel.start - offset) * rate));
      const last = Math.min(row.length - 1, Math.round((panel.stop - offset) * rate));
      const parts = [];
      let pen = "M";
      for (let i = first; i <= last; i++) {
        if (row[i] === -32768) { pen = "M"; continue; }
        const x = panel.left + (i / rate + offset - panel.start) * MM_S;
        const y = panel.base + shift - ((row[i] - level) / 1000) * MM_MV;
        parts.push(pen + x.toFixed(2) + " " + y.toFixed(2));
        pen = "L";
      }
      return parts.join("");
    }

    scale() {
      if (!this.svg) return;
      const fit = Math.max(LEAST, (this.paper.clientWidth - 1) / this.width);
      this.px = fit * this.zoom;
      this.svg.setAttribute("width", this.width * this.px);
      this.svg.setAttribute("height", this.height * this.px);
      this.svg.style.fontSize = `${13 / this.px}px`;
      this.paper.setAttribute("aria-label",
        `${this.ecg.label || "ECG"}. Arrow keys pan, plus and minus zoom, C turns on calipers.`);
    }

    zoomBy(factor, x, y) {
      const box = this.paper, before = this.px;
      const cx = x ?? box.clientWidth / 2, cy = y ?? box.clientHeight / 2;
      this.zoom = Math.min(8, Math.max(1, this.zoom * factor));
      this.scale();
      const ratio = this.px / before;
      box.scrollLeft = (box.scrollLeft + cx) * ratio - cx;
      box.scrollTop = (box.scrollTop + cy) * ratio - cy;
    }

    // ----------------------------------------------------------------------------------------------------- evidence

    show(evidence) {
      this.evidence = evidence;
      this.drawEvidence();
    }

    drawEvidence() {
      this.tints.replaceChildren();
      if (!this.evidence?.spans?.length) return;
      const most = Math.max(...Object.values(this.evidence.leads), 1e-9);
      const heaviest = Math.max(...this.evidence.spans.map((span) => span.weight));
      let earliest = null;
      for (const panel of this.panels) {
        const lead = (this.evidence.leads[panel.lead] ?? 0) / most;
        for (const { start_s, end_s, weight } of this.evidence.spans) {
          const start = Math.max(start_s, panel.start), stop = Math.min(end_s, panel.stop);
          if (start >= stop) continue;
          const x = panel.left + (start - panel.start) * MM_S, width = (stop - start) * MM_S;
          const strength = 0.08 + 0.3 * lead * (0.4 + 0.6 * (weight / heaviest));
          make("rect", { class: "tint", x, width, y: panel.top, height: panel.space, "fill-opacity": strength.toFixed(2) },
            this.tints);
          make("path", { class: "tinted", d: `M${x} ${panel.top + panel.space - 0.6}h${width}` }, this.tints);
          if (earliest === null || x < earliest) earliest = x;
        }
      }
      if (earliest !== null && this.svg.clientWidth > this.paper.clientWidth) {
        this.paper.scrollLeft = Math.max(0, earliest * this.px - 40);
      }
    }

    // ----------------------------------------------------------------------------------------------------- calipers

    drawCaliper() {
      this.marks.replaceChildren();
      this.readout.textContent = "";
      if (!this.caliper) return;
      const [a, b] = this.caliper;
      make("rect", { class: "caliper", x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x),
        height: Math.abs(a.y - b.y) }, this.marks);
      make("circle", { class: "corner", cx: b.x, cy: b.y, r: 5 / this.px }, this.marks);
      const ms = (Math.abs(a.x - b.x) / MM_S) * 1000, mv = Math.abs(a.y - b.y) / MM_MV;
      const rate = ms >= 150 ? `, ${Math.round(60000 / ms)}/min` : "";
      this.readout.textContent = `${Math.round(ms)} ms${rate}, ${mv.toFixed(2)} mV`;
    }

    where(event) {
      const box = this.svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / this.px, y = (event.clientY - box.top) / this.px;
      return { x: Math.min(this.width, Math.max(0, x)), y: Math.min(this.height, Math.max(0, y)) };
    }

    listen() {
      const paper = this.paper;
      let drag = null;
      paper.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        if (this.measuring) {
          const at = this.where(event);
          this.caliper = [at, at];
        } else if (event.pointerType === "touch") return; // scrolls natively
        drag = { x: event.clientX, y: event.clientY, left: paper.scrollLeft, top: paper.scrollTop };
        paper.setPointerCapture(event.pointerId);
        paper.classList.toggle("dragging", !this.measuring);
      });
      paper.addEventListener("pointermove", (event) => {
        if (!drag) return;
        if (this.measuring) { this.caliper[1] = this.where(event); this.drawCaliper(); return; }
        paper.scrollLeft = drag.left - (event.clientX - drag.x);
        paper.scrollTop = drag.top - (event.clientY - drag.y);
      });
      for (const end of ["pointerup", "pointercancel"]) {
        paper.addEventListener(end, () => { drag = null; paper.classList.remove("dragging"); });
      }
      paper.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        const box = paper.getBoundingClientRect();
        this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15, event.clientX - box.left, event.clientY - box.top);
      }, { passive: false });
      paper.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "+" || event.key === "=") this.zoomBy(1.25);
      else if (event.key === "-") this.zoomBy(1 / 1.25);
      else if (event.key === "0") { this.zoom = 1; this.scale(); }
      else if (event.key.toLowerCase() === "c" && this.measureButton) this.measureButton.click();
      else if (event.key === "Escape" && this.measuring) this.measureButton.click();
      else if (this.measuring && (event.key === "Enter" || event.key === " ") && this.caliper) {
        this.caliper.reverse();
        this.drawCaliper();
      } else if (arrows[event.key]) {
        const [dx, dy] = arrows[event.key];
        if (this.measuring) {
          this.caliper ??= [{ x: LEFT + 10, y: this.panels[0].base }, { x: LEFT + 10, y: this.panels[0].base }];
          const step = event.shiftKey ? 5 : 0.5, at = this.caliper[1]; // 20 ms and 0.05 mV, ten times with Shift
          this.caliper[1] = { x: Math.max(0, at.x + dx * step), y: Math.max(0, at.y + dy * step) };
          this.drawCaliper();
        } else {
          this.paper.scrollLeft += dx * 60;
          this.paper.scrollTop += dy * 60;
        }
      } else return;
      event.preventDefault();
    }
  }

  class MelpEvidence extends HTMLElement {
    static observedAttributes = ["data"];
    connectedCallback() { this.apply(); }
    attributeChangedCallback() { if (this.isConnected) this.apply(); }
    apply() {
      const target = document.getElementById(this.getAttribute("target"));
      const text = this.getAttribute("data");
      if (target?.show) target.show(text ? JSON.parse(text) : null);
    }
  }

  customElements.define("melp-ecg", MelpEcg);
  customElements.define("melp-evidence", MelpEvidence);
})();
