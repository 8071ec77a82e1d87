"""The style sheet of all pages, for light and dark screens of any width and for print."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --sheet: #f6f7f9; --ink: #1b1f24; --soft: #5c6670; --line: #dde1e6;
  --good: #e3f2ea; --accent: #0b6bb8; --c0: #0072b2; --c1: #d55e00; --c2: #008a65; --c3: #b8488f; --c4: #8a6d00;
  --c5: #2a9bd6; --c6: #c48400; --c7: #6a4fb3; --c8: #5b6470; --c9: #a32a2a; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171a; --sheet: #1d2125; --ink: #e8eaed;
  --soft: #9aa4ae; --line: #343a40; --good: #18382a; --accent: #6cb6f5; --c0: #56a8e8; --c1: #ff8a4c; --c2: #2fc79a;
  --c3: #e58cc4; --c4: #d1b340; --c5: #8fd3ff; --c6: #ffbe4d; --c7: #b09cf5; --c8: #aab3bd; --c9: #ff8080; } }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
.c8 { color: var(--c8); } .c9 { color: var(--c9); }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 52px 0 6px; scroll-margin-top: 52px; }
h3 { font-size: 1rem; margin: 24px 0 8px; overflow-wrap: anywhere; }
p { margin: 6px 0 12px; max-width: 76ch; } .soft { color: var(--soft); font-size: .9rem; }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); }
nav div { max-width: 1180px; margin: 0 auto; padding: 9px 20px; display: flex; gap: 18px; overflow-x: auto;
  white-space: nowrap; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--sheet); border: 1px solid var(--line); border-radius: 8px; padding: 11px 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 18px 0; }
.cards.wide { grid-template-columns: repeat(auto-fill, minmax(min(270px, 100%), 1fr)); }
.card { background: var(--sheet); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 15px; min-width: 0; }
.card b { display: block; font-size: 1.55rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card.wide b { font-size: 1.12rem; overflow-wrap: anywhere; } .card p { margin: 2px 0 0; font-size: .9rem; }
.note { border-left: 3px solid var(--c6); background: var(--sheet); padding: 9px 14px; border-radius: 0 8px 8px 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(350px, 100%), 1fr)); gap: 14px 22px; }
.charts.few { grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 540px)); }
figure { margin: 0; min-width: 0; } figcaption { font-size: .9rem; overflow-wrap: anywhere; }
.charts figcaption { font-weight: 600; margin: 8px 0 2px; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-family: inherit; }
svg.swatch { width: 28px; height: 14px; flex: none; }
svg text { fill: var(--soft); font-size: 12px; } svg text.name { fill: var(--ink); }
.grid { stroke: var(--line); stroke-width: 1; } .curve { stroke: currentColor; stroke-width: 2; fill: none; }
.bar { stroke: currentColor; stroke-width: 1.4; opacity: .55; }
.mark { fill: currentColor; stroke: var(--paper); stroke-width: .8; }
.box { fill: currentColor; fill-opacity: .25; stroke: currentColor; stroke-width: 1.2; }
.median { stroke: currentColor; stroke-width: 2.4; }
.legend { display: flex; flex-wrap: wrap; gap: 5px 20px; margin: 12px 0 4px; padding: 0; list-style: none;
  font-size: .9rem; }
.legend li { display: flex; align-items: center; gap: 7px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
thead th { white-space: normal; max-width: 150px; overflow-wrap: break-word; } tbody th { color: var(--ink);
  vertical-align: top; white-space: normal; min-width: 92px; max-width: 150px; overflow-wrap: break-word;
  position: sticky; left: 0; background: var(--paper); }
th:first-child, td:first-child, .text { text-align: left; }
td { vertical-align: top; } td.text { white-space: normal; overflow-wrap: anywhere; min-width: 76px; }
td.long { white-space: normal; min-width: 220px; overflow-wrap: anywhere; text-align: left; }
td small { display: block; color: var(--soft); font-size: .78rem; } .best { font-weight: 700; }
.best small { font-weight: 400; } .pair { display: flex; flex-wrap: wrap; gap: 0 44px; }
.pair .scroll { flex: none; max-width: 100%; }
td.sure { background: var(--good); }
.matrix th, .matrix td { padding: 5px 9px; text-align: center; } .matrix th:first-child { text-align: left; }
.matrix thead th { white-space: normal; min-width: 72px; max-width: 104px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(210px, 46%), 1fr)); gap: 14px; }
.gallery img { width: 100%; height: auto; display: block; aspect-ratio: 1; border-radius: 8px;
  background: #101214; }
.gallery figcaption { margin-top: 5px; line-height: 1.35; font-size: .84rem; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; background: currentColor;
  margin-right: .4em; }
footer { max-width: 1180px; margin: 60px auto 0; padding: 16px 20px 40px; border-top: 1px solid var(--line); }
@media (max-width: 560px) { main, header, nav div, footer { padding-left: 15px; padding-right: 15px; }
  h1 { font-size: 1.5rem; } .cards { grid-template-columns: repeat(2, 1fr); }
  .cards.wide { grid-template-columns: 1fr; }
  .card b { font-size: 1.3rem; } }
@media print { @page { margin: 14mm; } body { font-size: 10.5pt; } nav { display: none; }
  main, header { max-width: none; }
  .card, figure, tr, .legend { break-inside: avoid; } h2, h3 { break-after: avoid; } .scroll { overflow: visible; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""
