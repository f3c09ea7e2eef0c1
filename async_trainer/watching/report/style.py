"""The looks of a report, by day and by night."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2430;--soft:#5d6878;--edge:#e2e6ec;--grid:#e8ebf0;
--c0:#3a74d8;--c1:#e08a3c;--c2:#2f9d72;--c3:#9560d6;--c4:#d64f5b;--c5:#2aa3b5;--c6:#b6952b;--c7:#7f8b9b;
--good:#1c7c50;--goodbg:#dcf3e7;--bad:#b3252f;--badbg:#fbe0e1;--doubt:#8a5a00;--doubtbg:#fdeecb}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1a2029;--ink:#e4e9f0;--soft:#98a4b5;--edge:#2a323e;--grid:#27303b;
--c0:#6a9cf0;--c1:#eda561;--c2:#4fc094;--c3:#b48aeb;--c4:#ec7780;--c5:#54c2d2;--c6:#d5b755;--c7:#95a1b1;
--good:#6fdaa7;--goodbg:#153526;--bad:#ff9aa0;--badbg:#41191d;--doubt:#f3c969;--doubtbg:#3b2d0c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:28px 24px 40px}
header h1{font-size:26px;line-height:1.25;margin:8px 0 2px;letter-spacing:-.01em;overflow-wrap:anywhere}
header p,section>p{color:var(--soft);margin:0 0 14px;overflow-wrap:anywhere}
header:not(:first-child){margin-top:56px;border-top:2px solid var(--edge);padding-top:28px}
.badge{font-size:13px;font-weight:600;padding:3px 11px;border-radius:99px;vertical-align:4px;letter-spacing:0}
.good{color:var(--good);background:var(--goodbg)}.bad{color:var(--bad);background:var(--badbg)}
.doubtful{color:var(--doubt);background:var(--doubtbg)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(125px,1fr));gap:12px;margin:0 0 16px}
.tiles div,section{background:var(--card);border:1px solid var(--edge);border-radius:12px}
.tiles div{padding:12px 16px}
dt{color:var(--soft);font-size:13px}dd{margin:0;font-size:23px;font-weight:650;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
small{color:var(--soft);font-weight:400;font-size:12.5px}
section{padding:18px 22px 20px;margin:0 0 16px}
h2{font-size:17px;margin:0 0 2px}h3{font-size:14px;margin:20px 0 8px;font-weight:600}
.bar{display:flex;height:26px;border-radius:7px;overflow:hidden;background:var(--grid)}
.bar span{display:block;min-width:1px;border-right:1px solid var(--card)}.bar span:last-child{border:0}
.legend{list-style:none;margin:10px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:4px 20px;font-size:13.5px;color:var(--soft)}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px;vertical-align:-1px}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(380px,100%),1fr));gap:18px 28px}
figure{margin:0;min-width:0}.below{margin-top:20px}
figcaption{font-weight:600;font-size:14px;margin-bottom:4px;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:11.5px;fill:var(--soft);font-variant-numeric:tabular-nums}
.y,.label{text-anchor:end}.x{text-anchor:middle}
.grid{stroke:var(--grid);stroke-width:1}.mark{stroke:var(--soft);stroke-dasharray:3 3}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}.faint{stroke-width:1.2;opacity:.55}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:7px 10px;border-bottom:1px solid var(--edge);white-space:nowrap}
th{color:var(--soft);font-weight:500;font-size:13px}tr:last-child td{border-bottom:0}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2),th:last-child,td:last-child{text-align:left}
td:first-child{font-weight:600}th:first-child,td:first-child{padding-left:0}
.wrong{color:var(--bad);font-weight:650}
details{border-top:1px solid var(--edge);padding:8px 0}details:first-of-type{border-top:0}
summary{cursor:pointer;overflow-wrap:anywhere}summary i{color:var(--soft)}
pre{background:var(--bg);border:1px solid var(--edge);border-radius:8px;padding:12px;overflow-x:auto;font-size:12.5px;line-height:1.45}
.none,.notes,footer{color:var(--soft);font-size:13.5px}.notes{padding-left:20px}
@media print{section,.tiles div{break-inside:avoid}}
"""
