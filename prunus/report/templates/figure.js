"use strict";
for (const root of document.querySelectorAll("[data-figure]")) {
  const figure = JSON.parse(root.querySelector("script").textContent);
  const [plot, chart, readOut, scale, all] = [".plot", ".chart", ".read-out", ".scale", ".all"].map(s => root.querySelector(s));
  const buttons = [...root.querySelectorAll("[data-curve]")];
  const hidden = new Set();
  const TOP = 10, RIGHT = 16, BOTTOM = 26, MAX_DISTANCE = 60;
  const hasManyCurves = figure.curves.length > 6;
  let log = figure.log && figure.curves.some(c => c.points.some(p => p[0] > 0));
  let targets = []; // the points that can be selected: position, curve and values
  let selected = null, ring = null;

  const draw = () => {
    const width = Math.max(plot.clientWidth, 200);
    const height = Math.round(Math.min(Math.max(0.5 * width, 280), 0.7 * Math.max(innerHeight, 500)));
    const visible = figure.curves.filter((_, i) => !hidden.has(i));
    const shown = (visible.length ? visible : figure.curves).flatMap(c => c.points.filter(drawable));
    const [x, y] = [axis(shown.map(p => p[0]), log), axis(shown.flatMap(p => p.slice(1, 4)), figure.yLog)];
    const yTicks = ticks(y, height / 50);
    const left = 14 + 7 * Math.max(...yTicks.map(t => t.text.length));
    const toX = v => left + (width - left - RIGHT) * (figure.invert ? 1 - x.place(v) : x.place(v));
    const toY = v => TOP + (height - TOP - BOTTOM) * (1 - y.place(v));
    chart.replaceChildren();
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (const t of yTicks) {
      add(chart, "path", { class: "grid", d: `M${left} ${toY(t.value)}H${width - RIGHT}` });
      add(chart, "text", { x: left - 7, y: toY(t.value) + 4, "text-anchor": "end" }, t.text);
    }
    let occupied = [];
    for (const t of ticks(x, width / 90)) {
      const at = toX(t.value), half = 3.5 * t.text.length + 5;
      add(chart, "path", { class: "grid", d: `M${at} ${TOP}V${height - BOTTOM}` });
      if (occupied.some(([a, b]) => at + half > a && at - half < b) || at + half > width + 4) continue;
      occupied.push([at - half, at + half]);
      add(chart, "text", { x: at, y: height - 7, "text-anchor": "middle" }, t.text);
    }
    add(chart, "path", { class: "axis", d: `M${left} ${TOP}V${height - BOTTOM}H${width - RIGHT}` });
    targets = [];
    const layers = ["bands", "lines", "failures"].map(name => add(chart, "g", { "data-layer": name }));
    for (const curve of visible) drawCurve(curve, layers, toX, toY);
    ring = add(chart, "circle", { class: "ring", r: 9, visibility: "hidden" });
    select(null);
  };

  const drawCurve = (curve, layers, toX, toY) => {
    const [bands, lines, failures] = layers.map(layer => {
      const group = add(layer, "g", { class: curve.shape ? "curve" : "reference" });
      if (curve.color) group.style.setProperty("--own", curve.color);
      return group;
    });
    for (const run of runs(curve.points)) {
      const path = (points, value) => points.map(p => `${toX(p[0])} ${toY(value(p))}`).join("L");
      if (run.every(p => p[2] !== null && p[3] !== null)) {
        const back = path([...run].reverse(), p => p[3]);
        add(bands, "path", { class: hasManyCurves ? "faint band" : "band", d: `M${path(run, p => p[2])}L${back}Z` });
      }
      add(lines, "path", { class: "line", d: "M" + path(run, p => p[1]), "stroke-dasharray": curve.dashes });
      for (const point of run) {
        const target = { x: toX(point[0]), y: toY(point[1]), curve, point };
        const at = `translate(${target.x} ${target.y})`;
        if (curve.shape) add(lines, "path", { class: "marker", d: curve.shape, transform: `${at} scale(3.6)` });
        if (point[4]) add(failures, "circle", { class: "failed", r: 5.5, transform: at });
        targets.push(target);
      }
    }
  };

  const drawable = p => p[0] !== null && p[1] !== null && (!log || p[0] > 0);
  const runs = points => {
    const parts = [[]];
    for (const p of points) drawable(p) ? parts.at(-1).push(p) : parts.push([]);
    return parts.filter(part => part.length);
  };

  const axis = (values, logarithmic) => {
    const turn = logarithmic ? Math.log10 : v => v;
    const turned = values.filter(v => v !== null).map(turn);
    let low = turned.reduce((a, b) => Math.min(a, b), Infinity);
    let high = turned.reduce((a, b) => Math.max(a, b), -Infinity);
    if (low > high) [low, high] = [0, 1];
    const pad = low < high ? 0.05 * (high - low) : logarithmic ? 0.2 : Math.abs(low) / 10 || 1;
    [low, high] = [low - pad, high + pad];
    return { low, high, logarithmic, place: v => (turn(v) - low) / (high - low) };
  };

  const ticks = ({ low, high, logarithmic }, count) => {
    const values = [];
    if (logarithmic) {
      const digits = high - low < 1 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : high - low < 4 ? [1, 2, 5] : [1];
      for (let power = Math.floor(low); power <= high; power++)
        for (const digit of digits) values.push(Number(`${digit}e${power}`));
      const inside = values.filter(v => Math.log10(v) >= low && Math.log10(v) <= high);
      if (inside.length > 1) return inside.map(v => ({ value: v, text: short(v) }));
      [low, high, values.length] = [10 ** low, 10 ** high, 0];  // a short part of a decade has evenly spaced ticks
    }
    const rough = (high - low) / Math.max(count, 2), power = Math.floor(Math.log10(rough));
    const digit = [1, 2, 5, 10].find(d => d * 10 ** power >= rough * (1 - 1e-9));
    const step = digit * 10 ** power;
    for (let i = Math.ceil(low / step); i * step <= high; i++)
      values.push({ value: i * step, text: short(Number((i * step).toPrecision(12))) });
    return values;
  };
  const short = v => (v !== 0 && (Math.abs(v) < 1e-4 || Math.abs(v) >= 1e7) ? v.toExponential().replace("e+", "e") : String(v));
  const exact = v => (v === null ? "–" : String(Number(v.toPrecision(6))));

  const select = target => {
    selected = target;
    readOut.hidden = !target;
    ring.setAttribute("visibility", target ? "visible" : "hidden");
    if (!target) return;
    ring.setAttribute("transform", `translate(${target.x} ${target.y})`);
    const { curve, point } = target;
    const lines = [`${figure.x}: ${exact(point[0])}`, `${figure.y}: ${exact(point[1])}`];
    if (curve.n !== null) lines.push(`${figure.band}: ${exact(point[2])} to ${exact(point[3])}`, `n = ${curve.n}`);
    readOut.replaceChildren(word("b", curve.name), word("span", lines.join("\n")));
    if (point[4]) readOut.append("\n", word("span", "invariants failed", "bad"));
    const to = chart.getBoundingClientRect(), from = plot.getBoundingClientRect();
    const [px, py] = [to.left - from.left + target.x, to.top - from.top + target.y];
    const right = px + 14 + readOut.offsetWidth <= plot.clientWidth;
    readOut.style.left = `${right ? px + 14 : Math.max(0, px - 14 - readOut.offsetWidth)}px`;
    readOut.style.top = `${Math.max(0, py - readOut.offsetHeight - 8)}px`;
  };

  const nearest = event => {
    const box = chart.getBoundingClientRect();
    const distance = s => Math.hypot(s.x - (event.clientX - box.left), s.y - (event.clientY - box.top));
    const best = targets.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
    return best && distance(best) <= MAX_DISTANCE ? best : null;
  };
  const neighbor = (key, target) => {
    if (!target) return targets[0] ?? null;
    const same = targets.filter(s => s.curve === target.curve).sort((a, b) => a.x - b.x);
    if (key === "ArrowLeft" || key === "ArrowRight") return same[same.indexOf(target) + (key === "ArrowLeft" ? -1 : 1)] ?? target;
    const curves = [...new Set(targets.map(s => s.curve))];
    const next = curves.at((curves.indexOf(target.curve) + (key === "ArrowUp" ? -1 : 1)) % curves.length);
    return targets.filter(s => s.curve === next).reduce((a, b) => (Math.abs(a.x - target.x) <= Math.abs(b.x - target.x) ? a : b));
  };

  const word = (tag, text, look = "") => Object.assign(document.createElement(tag), { textContent: text, className: look });
  const add = (parent, tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return parent.appendChild(element);
  };
  const setHidden = (index, off) => {
    off ? hidden.add(index) : hidden.delete(index);
    buttons[index].setAttribute("aria-pressed", String(!off));
    all.textContent = hidden.size < buttons.length ? "hide all" : "show all";
  };

  buttons.forEach((button, i) => button.addEventListener("click", () => { setHidden(i, !hidden.has(i)); draw(); }));
  all.addEventListener("click", () => {
    const off = hidden.size < buttons.length;
    buttons.forEach((_, i) => setHidden(i, off));
    draw();
  });
  if (scale) {
    scale.hidden = !log;
    scale.addEventListener("click", () => {
      log = !log;
      scale.textContent = `x axis: ${log ? "logarithmic" : "linear"}`;
      draw();
    });
  }
  for (const kind of ["pointermove", "pointerdown"]) chart.addEventListener(kind, event => select(nearest(event)));
  chart.addEventListener("pointerleave", () => select(null));
  chart.addEventListener("blur", () => select(null));
  chart.addEventListener("keydown", event => {
    if (event.key === "Escape") select(null);
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    select(neighbor(event.key, selected));
  });
  all.hidden = plot.hidden = false;
  draw();
  new ResizeObserver(draw).observe(plot);
}
