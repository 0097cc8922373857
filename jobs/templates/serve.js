"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const form = byId("form"), input = byId("photo"), drop = byId("drop"), button = byId("send");
  const percent = (value) => (value > 0.999 ? "> 99.9 %" : value < 0.001 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`);
  const REASONS = {
    poor_photo: "The photo shows nothing (too little contrast), so nothing is said about the record.",
    training_photo: "The network has learned from this very photo, so nothing is said about the record.",
  };
  let asked = 0;
  let shown = null;

  // Text only ever enters as text: what a server or a file name says is never markup.
  const element = (tag, name, text) => {
    const node = document.createElement(tag);
    node.className = name;
    node.textContent = text;
    return node;
  };

  const fail = (text) => {
    byId("problem").textContent = text;
    byId("problem").hidden = false;
    byId("status").textContent = "";
  };

  const show = (answer, file, expected) => {
    const top = answer.probabilities.length - 1;
    const name = (count) => (count === top ? `${count} or more` : String(count));
    byId("count").textContent = name(answer.count);
    // as build_prediction_sets does: the set may leave out counts between qty_low and qty_high
    const threshold = Number(byId("bars").dataset.threshold);
    const members = [...answer.probabilities.keys()].filter((count) => 1 - answer.probabilities[count] <= threshold || count === answer.count);
    byId("set").textContent = `90 % set: ${members.map(name).join(", ")}${members.length === 1 ? " alone" : ""}`;
    const record = byId("record");
    record.hidden = expected === null;
    if (expected !== null) {
      record.textContent = answer.p_record_wrong === null ? REASONS[answer.reason] ?? ""
        : expected >= top ? `Record ${expected}: fewer than ${top} with probability ${percent(answer.p_record_wrong)} (record model: ${answer.record_model}).`
          : `Record ${expected}: wrong with probability ${percent(answer.p_record_wrong)} (record model: ${answer.record_model}).`;
    }
    byId("bars").replaceChildren(...answer.probabilities.map((probability, count) => {
      const item = document.createElement("li");
      const isRecord = expected !== null && Math.min(expected, top) === count;
      item.classList.toggle("inside", members.includes(count));
      item.classList.toggle("record", isRecord);
      const bar = document.createElementNS(SVG, "svg");
      bar.setAttribute("viewBox", "0 0 100 10");
      bar.setAttribute("preserveAspectRatio", "none");
      bar.setAttribute("aria-hidden", "true");
      const rect = document.createElementNS(SVG, "rect");
      rect.setAttribute("width", String(100 * probability));
      rect.setAttribute("height", "10");
      bar.append(rect);
      const label = count === top ? `${count}+` : String(count);
      item.append(element("span", "label", isRecord ? `${label} record` : label), bar, element("span", "share", percent(probability)));
      return item;
    }));
    if (shown) URL.revokeObjectURL(shown);
    shown = URL.createObjectURL(file);
    byId("picture").src = shown;
    byId("answer").hidden = false;
    byId("status").textContent = `Counted: ${name(answer.count)}`;
  };

  const count = async () => {
    const file = input.files[0];
    if (!file) return;
    const turn = ++asked;
    const text = byId("expected").value.trim();
    const expected = text === "" ? null : Number(text);
    const headers = { "Content-Type": "application/octet-stream" };
    const token = byId("token");
    if (token) headers.Authorization = `Bearer ${token.value}`;
    byId("problem").hidden = true;
    byId("answer").hidden = true;
    byId("status").textContent = "Counting…";
    button.disabled = true;
    try {
      const query = expected === null ? "" : `?expected_qty=${encodeURIComponent(text)}`;
      const response = await fetch(`v1/count${query}`, { method: "POST", headers, body: file });
      const body = await response.json();
      if (turn !== asked) return;
      if (response.ok) show(body, file, expected);
      else fail(`${body.title ?? response.statusText}: ${body.detail ?? ""}`);
    } catch (error) {
      if (turn === asked) fail(`The endpoint can’t be reached (${error.message}).`);
    } finally {
      if (turn === asked) button.disabled = false;
    }
  };

  const take = (files) => {
    if (!files.length) return;
    const first = new DataTransfer();
    first.items.add(files[0]);
    input.files = first.files;
    if (form.reportValidity()) count();
  };

  form.addEventListener("submit", (event) => { event.preventDefault(); count(); });
  input.addEventListener("change", () => { if (input.files.length && form.checkValidity()) count(); });
  document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files); });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
})();
