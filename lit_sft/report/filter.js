"use strict";
const controls = document.getElementById("filter");
const cards = [...document.querySelectorAll("article")];
const texts = cards.map((card) => card.textContent.toLowerCase());
const shown = document.getElementById("shown");
function apply() {
  const category = controls.elements.category.value;
  const strategy = controls.elements.strategy.value;
  const words = controls.elements.search.value.toLowerCase().trim();
  let count = 0;
  cards.forEach((card, number) => {
    const isWanted = (!category || card.dataset.category === category) && (!strategy || card.dataset.strategy === strategy)
      && (!controls.elements.changed.checked || card.dataset.changed === "1") && texts[number].includes(words);
    card.hidden = !isWanted;
    count += isWanted;
  });
  shown.textContent = `${count} of ${cards.length}`;
}
controls.hidden = false;
controls.addEventListener("input", apply);
controls.addEventListener("submit", (event) => event.preventDefault());
apply();
