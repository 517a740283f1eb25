"""The style sheet of a run's page, for light and dark, wide and narrow screens."""

STYLE = """
:root { --back: #fff; --text: #1b1f24; --soft: #5a636e; --line: #d8dde3;
  --card: #f5f7f9; --blue: #0072b2; --red: #d55e00; --green: #00785a; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --text: #e6e9ed; --soft: #9aa5b1; --line: #333a43;
    --card: #1d2127; --blue: #56b4e9; --red: #ff8f45; --green: #2fc298; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
header p, .note, figcaption { color: var(--soft); }
header p { margin: 0; }
.note, figcaption { font-size: .85rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 0; }
.cards div { flex: 1 1 10rem; padding: .7rem .9rem; border-radius: .5rem;
  background: var(--card); border: 1px solid var(--line); }
.cards dt, .cards dd:last-child { color: var(--soft); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.cards dd:nth-child(2) { white-space: nowrap; }
.cards small { font-size: .9rem; color: var(--soft); }
figure { margin: 0 0 1.5rem; }
figure svg { display: block; width: 100%; height: auto; }
svg.narrow { display: none; }
@media (max-width: 34rem) { figure svg.wide { display: none; }
  figure svg.narrow { display: block; } }
svg text { fill: var(--soft); font-size: 12px; }
svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg .grid { stroke: var(--line); }
svg .frame { fill: none; stroke: var(--line); }
.training { --own: var(--blue); }
.validation { --own: var(--red); }
.norm { --own: var(--green); }
svg .line { fill: none; stroke: var(--own); stroke-width: 1.5; }
svg .bar { fill: none; stroke: var(--own); }
svg .validation .line { stroke-dasharray: 5 3; }
svg circle { fill: var(--own); }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.5rem;
  margin: .3rem 0 0; padding: 0; }
.key span { display: inline-block; width: 1.4em; margin-right: .5em;
  vertical-align: middle; border-top: 2px solid var(--own); }
.key .validation span { border-top-style: dashed; }
img { display: block; max-width: min(100%, 40rem); height: auto; border-radius: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th[scope=row] { font-weight: normal; color: var(--soft); white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
th:last-child, td:last-child { padding-right: 0; }
.numbers { overflow-wrap: normal; }
.numbers td:nth-child(2), .numbers td:nth-child(3), .numbers th:nth-child(2),
.numbers thead th:nth-child(3) { text-align: right; }
.sum td, .sum th[scope=row] { font-weight: 600; color: var(--text); }
.pairs { margin: 0; font-size: .9rem; columns: 20rem; column-gap: 2rem; }
.pairs div { display: flex; gap: .2rem 1rem; padding: .2rem 0; break-inside: avoid;
  border-bottom: 1px solid var(--line); }
.pairs dt { color: var(--soft); flex: 0 0 48%; }
.pairs dd { margin: 0; }
summary { cursor: pointer; color: var(--soft); margin: .5rem 0; }
"""
