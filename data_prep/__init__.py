"""Data sets as clips: one script each, all with the verbs cut, annotate, check and manifest (see `data_prep.verbs`)."""
