"""Quality with its uncertainty and speed as it is really measured.

features/ (image -> vector), metrics/ (vectors -> number), evaluate.py (samples -> record), leaderboard.py (records -> page).
"""

if __name__ != "gen.eval":
    raise ImportError("import gen.eval, not eval")
