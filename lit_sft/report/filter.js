"use strict";
const controls = document.getElementById("filter");
const cards = [...document.querySelectorAll("article")];
const texts = cards.map((card) => card.textContent.toLowerCase());
const shown = document.getElementById("shown");
function gain(card) {
  return card.dataset.gain === "" ? 0 : Number(card.dataset.gain);
}
function isWanted(card, number) {
  const chosen = controls.elements;
  return (!chosen.category.value || card.dataset.category === chosen.category.value)
    && (!chosen.strategy.value || card.dataset.strategy === chosen.strategy.value)
    && (!chosen.changed.checked || card.dataset.changed === "1")
    && (!chosen.worse.checked || gain(card) < 0)
    && texts[number].includes(chosen.search.value.toLowerCase().trim());
}
function apply() {
  let count = 0;
  cards.forEach((card, number) => {
    card.hidden = !isWanted(card, number);
    count += !card.hidden;
  });
  shown.textContent = `${count} of ${cards.length}`;
}
function sort() {
  const sign = { worst: 1, best: -1 }[controls.elements.order.value] ?? 0;
  const sorted = sign ? [...cards].sort((one, other) => sign * (gain(one) - gain(other))) : cards;
  sorted.forEach((card) => card.parentElement.append(card));
}
controls.hidden = false;
controls.addEventListener("input", apply);
controls.elements.order.addEventListener("input", sort);
controls.addEventListener("submit", (event) => event.preventDefault());
apply();
