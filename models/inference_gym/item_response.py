"""Item response theory with one parameter (Rasch 1960): 400 students, 100 questions, three in four.

logit P(correct_ij) = mean_student_ability + centered_student_ability_i - question_difficulty_j
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import varax as vx
from varax import dist as d


@vx.model
def item_response(student_ids: Any, question_ids: Any, correct: Any) -> None:
    """Three parallel arrays [N] of answers; pairs without an answer are masked."""
    students, questions = int(max(student_ids)) + 1, int(max(question_ids)) + 1
    mean = vx.sample("mean_student_ability", d.Normal(0.75, 1.0))
    ability = vx.sample("centered_student_ability", d.Normal(jnp.zeros(students), 1.0))
    difficulty = vx.sample("question_difficulty", d.Normal(jnp.zeros(questions), 1.0))
    logits = mean + ability[:, None] - difficulty  # [students, questions]
    answered, right = np.zeros((2, students, questions), int)
    answered[student_ids, question_ids] = 1
    right[student_ids, question_ids] = correct
    vx.sample("correct", vx.masked(d.Bernoulli(logits=logits), answered == 1), obs=right)
