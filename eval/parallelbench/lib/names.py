"""The names on the waiting lists: as many first and last ones as ParallelBench has, but others.

Two of its last names stand twice in its list, and as draws depend on that, so do two of these.
"""

__all__ = ["FIRST", "LAST"]

_FIRST = """
Ada Agnes Alba Alma Amos Anita Arlo Astrid Ava Basil Beatrix Bella Boris Bruno Carla Cedric Clara Cleo Conrad Cora
Dana Daphne Diego Dora Edgar Edith Elias Elsa Emil Enzo Erik Esther Ezra Faye Felix Fiona Flora Gail Gemma Gustav
Hanna Hazel Heidi Hugo Ida Igor Ingrid Iris Ivan Jasper Jonas Judith Kai Kira Lars Leah Leo Lila Luca Lucy Mabel
Magnus Marco Maya Milo Mona Nadia Nico Nina Nora Olga Omar Oscar Otto Paula Pedro Petra Quentin Ralph Rosa Rufus Ruth
Silas Sonia Tessa Theo Tobias Uma Vera Viktor Wanda Zoe
"""
_LAST = """
Abbott Adler Ahmed Albrecht Alder Almeida Amari Andersen Archer Ashby Atwood Bach Baldwin Banerjee Barlow Bauer Becker
Berg Bianchi Birch Blum Bosch Bowman Brandt Braun Briggs Brook Buckley Calder Campos Cardoso Carver Castle Chan Chopra
Clay Conti Costa Cotter Crane Croft Dahl Dalton Darby Dietrich Dixon Dorsey Drake Duarte Dubois Eaton Eklund Ellery
Engel Espinoza Evers Fabian Falk Farrow Faust Finch Fink Fischer Fleming Fontaine Forster Frost Fry Fuchs Gale Garland
Gibbs Glover Goldberg Gould Gower Greco Grimm Gruber Haas Hahn Hale Hamid Hardy Hartmann Heller Hobbs Hoffman Holt
Horn Hsu Huber Ibarra Inoue Ismail Ito Ivanov Jansen Jarvis Joshi Kane Kaplan Kato Keller Kemp Khan Kirsch Klein Koch
Kovacs Kramer Kuhn Lam Lang Larkin Leroy Lind Lisle Lorenz Lowe Lund Maier Malik Mancini Marsh Mendes Mohr Moss Nash
Ness Nilsson Novak Oakley Okafor Olsen Osman Otis Palermo Pavlov Peck Pereira Petit Pohl Potts Quayle Quist Radford
Rao Rask Reeve Ricci Richter Roth Rowe Sachs Sato Sauer Schwartz Seidel Sharma Silva Singh Sorensen Stark Stein Tanaka
Thorne Tiller Todd Torre Udo Ueda Unger Vaughn Vidal Vogel Vogt Voss Walter Weber Weiss Wolf Yamada Yates Yilmaz York
Zeller Ziegler Zimmer Zorn
"""
FIRST, _ONCE = tuple(_FIRST.split()), tuple(_LAST.split())
LAST = (*_ONCE[:152], _ONCE[88], *_ONCE[152:186], _ONCE[118], *_ONCE[186:])
