"use strict";
(() => {
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

  const element = (tag, name, text) => {
    const node = document.createElement(tag);
    node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // The index of the value of xs, which ascend, that is nearest to x.
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - xs[low - 1] <= xs[low] - x ? low - 1 : low;
  };

  const show = (value, percent) => percent ? `${number.format(100 * value)}%` : number.format(value);

  const startPlot = (figure, plot) => {
    const area = figure.querySelector(".area");
    let x = null;

    const clear = () => area.querySelectorAll(".cursor, .dot, .tip").forEach((node) => node.remove());

    // Draws a line at the point that is nearest to x, and the curves' values there.
    const draw = () => {
      clear();
      if (x === null) return;
      const points = plot.curves.map((curve, i) => ({ curve, i, at: nearest(curve.x, x) }));
      x = points.map(({ curve, at }) => curve.x[at]).reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a);
      const left = 100 * x / plot.last;
      const cursor = element("div", "cursor"), tip = element("div", "tip");
      cursor.style.left = `${left}%`;
      tip.append(element("b", "", `${plot.unit} ${whole.format(x)}`));
      for (const { curve, i, at } of points) {
        const value = curve.y[at];
        if (value === null) continue;
        const row = element("div", "");
        const elsewhere = curve.x[at] === x ? "" : ` at ${whole.format(curve.x[at])}`;
        row.append(element("span", "", curve.name + elsewhere), element("b", "", show(value, plot.percent)));
        tip.append(row);
        if (curve.low && curve.low[at] !== curve.high[at]) {
          tip.append(element("div", "", `${show(curve.low[at], plot.percent)} to ${show(curve.high[at], plot.percent)}`));
        }
        const dot = element("div", `dot c${i + 1}`);
        dot.style.left = `${100 * curve.x[at] / plot.last}%`;
        dot.style.top = `${curve.top[at]}%`;
        area.append(dot);
      }
      area.append(cursor, tip);
      const room = area.clientWidth - tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(room, area.clientWidth * left / 100 + (left > 50 ? -tip.offsetWidth - 12 : 12)))}px`;
    };

    const move = (event) => {
      const box = area.getBoundingClientRect();
      x = plot.last * (event.clientX - box.left) / box.width;
      draw();
    };
    const leave = () => { x = null; clear(); };
    area.addEventListener("pointermove", move);
    area.addEventListener("pointerdown", move);
    area.addEventListener("pointerleave", leave);
    area.addEventListener("blur", leave);
    area.addEventListener("keydown", (event) => {
      const longest = plot.curves.reduce((a, b) => b.x.length > a.x.length ? b : a).x;
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const at = x === null ? longest.length - 1 : nearest(longest, x) + step;
      x = longest[Math.max(0, Math.min(longest.length - 1, at))];
      draw();
    });
  };

  const images = () => [...document.querySelectorAll(".grids img")];

  const showGrid = (i) => {
    images().forEach((image, j) => { image.hidden = i !== j; });
    const text = `step ${whole.format(images()[i].dataset.step)}`;
    document.getElementById("step").textContent = text;
    document.getElementById("slider").setAttribute("aria-valuetext", text);
  };

  const start = () => {
    const plots = JSON.parse(document.getElementById("points").textContent);
    document.querySelectorAll(".plot").forEach((figure) => startPlot(figure, plots[figure.dataset.plot]));
    const slider = document.getElementById("slider");
    if (slider === null) return;
    slider.addEventListener("input", () => showGrid(Number(slider.value)));
    showGrid(Number(slider.value));
  };

  // What a reader has set: the step of the slider (null: the newest), the open parts, the focus.
  const readState = () => {
    const slider = document.getElementById("slider");
    const newest = slider === null || slider.value === slider.max;
    const focused = document.activeElement;
    return {
      step: newest ? null : Number(images()[slider.value].dataset.step),
      open: [...document.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent),
      slider: focused !== null && focused.id === "slider",
    };
  };

  const restoreState = (state) => {
    document.querySelectorAll("details > summary").forEach((summary) => {
      summary.parentElement.open = state.open.includes(summary.textContent);
    });
    const slider = document.getElementById("slider");
    if (slider === null) return;
    if (state.step !== null) {
      slider.value = nearest(images().map((image) => Number(image.dataset.step)), state.step);
      showGrid(Number(slider.value));
    }
    if (state.slider) slider.focus({ preventScroll: true });
  };

  // While a server keeps the page up to date: asks it every two seconds whether the run has gone on.
  const watch = () => {
    let held = false;
    const ask = async (path) => {
      const answer = await fetch(path, { cache: "no-store" });
      return answer.ok ? await answer.text() : null;
    };
    document.addEventListener("pointerdown", () => { held = true; });
    document.addEventListener("pointerup", () => { held = false; });
    const look = async () => {
      const live = document.getElementById("live");
      try {
        const version = await ask("version");
        const text = version === null || version === live.dataset.version || held ? null : await ask(".");
        live.textContent = version === null ? "the run cannot be read" : "live";
        live.classList.toggle("gone", version === null);
        if (text !== null) {
          const page = new DOMParser().parseFromString(text, "text/html");
          const state = readState();
          document.querySelector("main").replaceWith(page.querySelector("main"));
          document.getElementById("points").replaceWith(page.getElementById("points"));
          start();
          restoreState(state);
        }
      } catch {
        live.textContent = "the server has stopped";
        live.classList.add("gone");
      }
      setTimeout(look, 2000);
    };
    setTimeout(look, 2000);
  };

  start();
  if (document.getElementById("live") !== null) watch();
})();
