"""K-Sort Arena (arXiv 2408.14468): people rank K pictures at a time, and the models behind them get a leaderboard.

rating (what a ranking says about skills), votes (a file of them that survives any kill), board (the ranking of all
votes, and who is compared next), contestants (folders of pictures and runs), server (the local page). Only the server
needs more than the standard library.
"""
