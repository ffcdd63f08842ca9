// What axe-core misses in the theme: names of landmarks, and boxes that the keyboard can scroll.
const mend = () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const buttons of document.querySelectorAll(".md-code__nav")) buttons.setAttribute("role", "none");
  for (const pages of document.querySelectorAll(".md-nav[data-md-level='1']")) {
    pages.removeAttribute("aria-labelledby");
    pages.setAttribute("aria-label", `Pages: ${pages.querySelector("label").textContent.trim()}`);
  }
  const boxes = "pre > code, .md-typeset__scrollwrap, p:has(> img)";
  for (const box of document.querySelectorAll(boxes)) {
    box.classList.toggle("scrolls", box.scrollWidth > box.clientWidth);
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
};
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", mend);
mend();
