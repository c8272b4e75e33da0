"""Exams: what methods are asked is handed out as a paper, their answers are graded with a key that stays."""
