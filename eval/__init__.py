"""Quality with its uncertainty and speed as it is really measured.

Images: features/ (image -> vector) and metrics/ (two sets of vectors -> numbers) are plug-ins, their contracts stand in
their folders' docstrings; reference (real images), rows (samples, in any order and batch size), evaluate (a pipeline ->
a record), record (reading, checking, writing), sources (records from files, folders and lists), published (numbers of
others), ranking, leaderboard (records -> .html, .csv, .md, text).
People: arena/ (votes on pictures -> a ranking).
Text: parallelbench/ (tasks), decoding (decoders -> records), bounds (the best that is possible).
Speed: throughput, speed_table (several batch sizes), cache_comparison (a cache against none), bench (ours and peers).
Shown by: estimate (numbers to digits of their error), tables, plot, pictures, pages/ (templates and their style sheet).
"""

if __name__ != "gen.eval":
    raise ImportError("import gen.eval, not eval")
