"""The protocol of an evaluation as pure functions: no I/O, no protobuf, no SQL.

`states` holds the table of moves, `rows` what is known of an evaluation, `judging` rule 8, `folding` rules 3 to 7 and
16, `replies` rule 11, `filters` the language of list filters.
"""
