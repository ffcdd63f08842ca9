// What axe-core misses in the theme: names of landmarks, and boxes that the keyboard can scroll.
const mend = () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const buttons of document.querySelectorAll(".md-code__nav")) buttons.setAttribute("role", "none");
  for (const pages of document.querySelectorAll(".md-nav[data-md-level='1']")) {
    pages.removeAttribute("aria-labelledby");
    pages.setAttribute("aria-label", `Pages: ${pages.querySelector("label").textContent.trim()}`);
  }
  const blocks = [...document.querySelectorAll("pre > code")];
  const columns = blocks.map((code) => Math.max(...code.textContent.split("\n").map((line) => line.length)));
  blocks.forEach((code, index) => code.style.setProperty("--columns", columns[index]));
  const fitting = columns.filter((count) => count <= 135); // wider blocks scroll
  const shared = matchMedia("(min-width: 60rem)").matches ? Math.max(1, ...fitting) : 1;
  document.body.style.setProperty("--shared-columns", shared);
  const boxes = "pre > code, .md-typeset__scrollwrap, p:has(> img)";
  for (const box of document.querySelectorAll(boxes)) {
    const scrolls = box.scrollWidth > box.clientWidth + 4; // fewer pixels hide nothing
    box.classList.toggle("scrolls", scrolls);
    if (scrolls) box.tabIndex = 0;
  }
};
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
new ResizeObserver(mend).observe(document.querySelector("article"));
mend();
