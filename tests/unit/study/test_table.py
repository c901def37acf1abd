from pantomim.study.table import _last_tenth


def test_what_was_not_logged_in_a_step_is_left_out_of_its_mean():
    last = [{"loss": 1.0, "overlap": None, "std": None}, {"loss": 3.0, "overlap": 0.5, "std": None}]
    assert _last_tenth([{"loss": 9.0}] * 18 + last) == {"loss": 2.0, "overlap": 0.5}
