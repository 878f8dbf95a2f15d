"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  let ballot = null; // {ballot, pictures, prompt, votes}
  let groups = []; // [[slots of rank 1], [slots of the next rank] ...]
  let tie = false, busy = false;

  function ranks() {
    const out = ballot.pictures.map(() => null);
    let rank = 1;
    for (const group of groups) {
      for (const slot of group) out[slot] = rank;
      rank += group.length;
    }
    return out;
  }

  function show(message) {
    const all = ballot ? ranks() : [];
    document.querySelectorAll("#pictures button").forEach((button, i) => {
      button.classList.toggle("ranked", all[i] !== null);
      button.setAttribute("aria-label", `Picture ${i + 1}, ${all[i] === null ? "no rank" : `rank ${all[i]}`}`);
      button.querySelector(".badge").textContent = all[i] === null ? "" : all[i];
    });
    byId("tie").disabled = !groups.length;
    byId("tie").setAttribute("aria-pressed", String(tie));
    byId("undo").disabled = !groups.length;
    byId("send").disabled = busy || !groups.length;
    const next = tie ? "the next picture ties with the last" : `choose rank ${1 + groups.flat().length}`;
    const left = ballot && groups.flat().length < ballot.pictures.length;
    byId("status").textContent = message || (!ballot ? "" : `${ballot.votes} vote${ballot.votes === 1 ? "" : "s"} so far; ${left ? next : "send it"}`);
  }

  function choose(slot) {
    if (busy || !ballot || slot >= ballot.pictures.length) return;
    const had = groups.flat().includes(slot);
    groups = groups.map((group) => group.filter((other) => other !== slot)).filter((group) => group.length);
    if (!had && tie && groups.length) groups[groups.length - 1].push(slot);
    else if (!had) groups.push([slot]);
    tie = false;
    show();
  }

  function undo() {
    if (groups.length && !busy) choose(groups[groups.length - 1].at(-1));
  }

  async function post(path, body) {
    const answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    const value = await answer.json();
    if (!answer.ok && answer.status !== 409) throw new Error(value.error);
    return value;
  }

  async function next() {
    ballot = null;
    groups = [];
    tie = false;
    const asked = await post("ballot", {});
    const boxes = asked.pictures.map((source, i) => {
      const button = document.createElement("button"), picture = new Image();
      const number = document.createElement("kbd"), badge = document.createElement("span");
      picture.src = source;
      picture.alt = "";
      picture.onload = () => picture.classList.toggle("small", picture.naturalWidth < 200);
      number.textContent = i + 1;
      badge.className = "badge";
      button.append(picture, number, badge);
      button.onclick = () => choose(i);
      return button;
    });
    byId("pictures").replaceChildren(...boxes);
    byId("prompt").textContent = asked.prompt || "Rank the pictures, the best one first.";
    ballot = asked;
    show();
  }

  async function attempt(work) {
    if (busy) return;
    busy = true;
    let failed = "";
    try {
      await work();
    } catch (error) {
      failed = `${error.message || error}. Nothing was lost: try again.`;
    }
    busy = false;
    show(failed);
  }

  const send = () => ballot && groups.length && attempt(async () => {
    await post("vote", { ballot: ballot.ballot, ranks: ranks() });
    await next();
  });
  const skip = () => attempt(next);
  const toggle = () => { tie = groups.length > 0 && !tie; show(); };

  byId("send").onclick = send;
  byId("skip").onclick = skip;
  byId("undo").onclick = undo;
  byId("tie").onclick = toggle;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key;
    if (key === "Enter" && event.target.closest(".actions, a")) return; // of the button that has the focus
    if (/^[1-9]$/.test(key)) choose(Number(key) - 1);
    else if (key === "=" || key === "t") toggle();
    else if (key === "Backspace") undo();
    else if (key === "s") skip();
    else if (key === "Enter") send();
    else return;
    event.preventDefault();
  });
  skip();
})();
