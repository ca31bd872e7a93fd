"use strict";
for (const root of document.querySelectorAll("[data-figure]")) {
  const figure = JSON.parse(root.querySelector("script").textContent);
  const [plot, chart, readOut, scale, all] = [".plot", ".chart", ".read-out", ".scale", ".all"].map(s => root.querySelector(s));
  const buttons = [...root.querySelectorAll("[data-curve]")];
  const hidden = new Set();
  const TOP = 10, RIGHT = 16, BOTTOM = 26, REACH = 60;
  const crowded = figure.curves.length > 6;
  let log = figure.log && figure.curves.some(c => c.points.some(p => p[0] > 0));
  let spots = []; // what can be pointed at: where it is drawn, and the curve and the point behind it
  let chosen = null, ring = null;

  const draw = () => {
    const width = Math.max(plot.clientWidth, 200);
    const height = Math.round(Math.min(Math.max(0.5 * width, 280), 0.7 * Math.max(innerHeight, 500)));
    const seen = figure.curves.filter((_, i) => !hidden.has(i));
    const shown = (seen.length ? seen : figure.curves).flatMap(c => c.points.filter(drawable));
    const [x, y] = [axis(shown.map(p => p[0]), log), axis(shown.flatMap(p => p.slice(1, 4)), false)];
    const yTicks = ticks(y, height / 50);
    const left = 14 + 7 * Math.max(...yTicks.map(t => t.text.length));
    const across = v => left + (width - left - RIGHT) * (figure.invert ? 1 - x.place(v) : x.place(v));
    const down = v => TOP + (height - TOP - BOTTOM) * (1 - y.place(v));
    chart.replaceChildren();
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    for (const t of yTicks) {
      add(chart, "path", { class: "grid", d: `M${left} ${down(t.value)}H${width - RIGHT}` });
      add(chart, "text", { x: left - 7, y: down(t.value) + 4, "text-anchor": "end" }, t.text);
    }
    let taken = [];
    for (const t of ticks(x, width / 90)) {
      const at = across(t.value), half = 3.5 * t.text.length + 5;
      add(chart, "path", { class: "grid", d: `M${at} ${TOP}V${height - BOTTOM}` });
      if (taken.some(([a, b]) => at + half > a && at - half < b) || at + half > width + 4) continue;
      taken.push([at - half, at + half]);
      add(chart, "text", { x: at, y: height - 7, "text-anchor": "middle" }, t.text);
    }
    add(chart, "path", { class: "axis", d: `M${left} ${TOP}V${height - BOTTOM}H${width - RIGHT}` });
    spots = [];
    const layers = ["bands", "lines", "failures"].map(name => add(chart, "g", { "data-layer": name }));
    for (const curve of seen) drawCurve(curve, layers, across, down);
    ring = add(chart, "circle", { class: "ring", r: 9, visibility: "hidden" });
    tell(null);
  };

  const drawCurve = (curve, layers, across, down) => {
    const [bands, lines, failures] = layers.map(layer => {
      const group = add(layer, "g", { class: curve.shape ? "curve" : "reference" });
      if (curve.color) group.style.setProperty("--own", curve.color);
      return group;
    });
    for (const run of runs(curve.points)) {
      const path = (points, value) => points.map(p => `${across(p[0])} ${down(value(p))}`).join("L");
      if (run.every(p => p[2] !== null && p[3] !== null)) {
        const back = path([...run].reverse(), p => p[3]);
        add(bands, "path", { class: crowded ? "faint band" : "band", d: `M${path(run, p => p[2])}L${back}Z` });
      }
      add(lines, "path", { class: "line", d: "M" + path(run, p => p[1]), "stroke-dasharray": curve.dashes });
      for (const point of run) {
        const spot = { x: across(point[0]), y: down(point[1]), curve, point };
        const at = `translate(${spot.x} ${spot.y})`;
        if (curve.shape) add(lines, "path", { class: "marker", d: curve.shape, transform: `${at} scale(3.6)` });
        if (point[4]) add(failures, "circle", { class: "failed", r: 5.5, transform: at });
        spots.push(spot);
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
    const found = [];
    if (logarithmic) {
      const digits = high - low < 1 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : high - low < 4 ? [1, 2, 5] : [1];
      for (let power = Math.floor(low); power <= high; power++)
        for (const digit of digits) found.push(Number(`${digit}e${power}`));
      return found.filter(v => Math.log10(v) >= low && Math.log10(v) <= high).map(v => ({ value: v, text: short(v) }));
    }
    const rough = (high - low) / Math.max(count, 2), power = Math.floor(Math.log10(rough));
    const digit = [1, 2, 5, 10].find(d => d * 10 ** power >= rough * (1 - 1e-9));
    const step = digit * 10 ** power;
    for (let i = Math.ceil(low / step); i * step <= high; i++)
      found.push({ value: i * step, text: short(Number((i * step).toPrecision(12))) });
    return found;
  };
  const short = v => (v !== 0 && (Math.abs(v) < 1e-4 || Math.abs(v) >= 1e7) ? v.toExponential().replace("e+", "e") : String(v));
  const exact = v => (v === null ? "–" : String(Number(v.toPrecision(6))));

  const tell = spot => {
    chosen = spot;
    readOut.hidden = !spot;
    ring.setAttribute("visibility", spot ? "visible" : "hidden");
    if (!spot) return;
    ring.setAttribute("transform", `translate(${spot.x} ${spot.y})`);
    const { curve, point } = spot;
    const lines = [`${figure.x}: ${exact(point[0])}`, `${figure.y}: ${exact(point[1])}`];
    if (curve.n !== null) lines.push(`${figure.band}: ${exact(point[2])} to ${exact(point[3])}`, `n = ${curve.n}`);
    readOut.replaceChildren(word("b", curve.name), word("span", lines.join("\n")));
    if (point[4]) readOut.append("\n", word("span", "invariants failed", "bad"));
    const to = chart.getBoundingClientRect(), from = plot.getBoundingClientRect();
    const [px, py] = [to.left - from.left + spot.x, to.top - from.top + spot.y];
    const right = px + 14 + readOut.offsetWidth <= plot.clientWidth;
    readOut.style.left = `${right ? px + 14 : Math.max(0, px - 14 - readOut.offsetWidth)}px`;
    readOut.style.top = `${Math.max(0, py - readOut.offsetHeight - 8)}px`;
  };

  const nearest = event => {
    const box = chart.getBoundingClientRect();
    const distance = s => Math.hypot(s.x - (event.clientX - box.left), s.y - (event.clientY - box.top));
    const best = spots.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
    return best && distance(best) <= REACH ? best : null;
  };
  const walk = (key, spot) => {
    if (!spot) return spots[0] ?? null;
    const same = spots.filter(s => s.curve === spot.curve).sort((a, b) => a.x - b.x);
    if (key === "ArrowLeft" || key === "ArrowRight") return same[same.indexOf(spot) + (key === "ArrowLeft" ? -1 : 1)] ?? spot;
    const curves = [...new Set(spots.map(s => s.curve))];
    const next = curves.at((curves.indexOf(spot.curve) + (key === "ArrowUp" ? -1 : 1)) % curves.length);
    return spots.filter(s => s.curve === next).reduce((a, b) => (Math.abs(a.x - spot.x) <= Math.abs(b.x - spot.x) ? a : b));
  };

  const word = (tag, text, look = "") => Object.assign(document.createElement(tag), { textContent: text, className: look });
  const add = (parent, tag, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return parent.appendChild(made);
  };
  const turn = (index, off) => {
    off ? hidden.add(index) : hidden.delete(index);
    buttons[index].setAttribute("aria-pressed", String(!off));
    all.textContent = hidden.size < buttons.length ? "hide all" : "show all";
  };

  buttons.forEach((button, i) => button.addEventListener("click", () => { turn(i, !hidden.has(i)); draw(); }));
  all.addEventListener("click", () => {
    const off = hidden.size < buttons.length;
    buttons.forEach((_, i) => turn(i, off));
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
  for (const kind of ["pointermove", "pointerdown"]) chart.addEventListener(kind, event => tell(nearest(event)));
  chart.addEventListener("pointerleave", () => tell(null));
  chart.addEventListener("blur", () => tell(null));
  chart.addEventListener("keydown", event => {
    if (event.key === "Escape") tell(null);
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    tell(walk(event.key, chosen));
  });
  all.hidden = plot.hidden = false;
  draw();
  new ResizeObserver(draw).observe(plot);
}
