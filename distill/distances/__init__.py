"""Distances between what a student makes and what it should make: a frozen dataclass, called (ours, theirs) -> [B].

Any of them that is zero only between equals will do where each noise has one right answer (rf++ calls them premetrics).
"""
