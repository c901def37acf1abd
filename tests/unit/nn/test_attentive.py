import torch

from pantomim.nn.heads import AttentiveHead


def build(**changes) -> AttentiveHead:
    torch.manual_seed(0)
    head = AttentiveHead(8, 2, 3, **changes).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def tokens(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_training_normalises_by_the_batch() -> None:
    head = build()
    pooled = head.pool(tokens())
    expected = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(head(tokens()), head.head(expected))


def test_evaluation_does_not_depend_on_who_shares_the_batch() -> None:
    head = build().eval()
    torch.testing.assert_close(head(tokens())[:2], head(tokens()[:2]))


def test_the_official_switch_does() -> None:
    head, ours = build(test_batch_statistics=True), build()
    assert not torch.allclose(head.eval()(tokens())[:2], head(tokens()[:2]))
    torch.testing.assert_close(head(tokens()), ours.train()(tokens()))
    assert not head.norm.running_mean.any()  # evaluation keeps no record


def test_it_may_look_at_one_token_alone() -> None:
    """A key that fits the query much better than all others decides: the probe can select a region."""
    head, given = build().eval(), tokens()
    with torch.no_grad():
        head.attn.q.weight.copy_(torch.eye(8) * 100)
        head.attn.k.weight.copy_(torch.eye(8) * 100)
        for norm in (head.norm_q, head.norm_k):
            norm.weight.fill_(1)
            norm.bias.zero_()
        head.attn.q_bias.zero_()
        given[:, 3] = head.query_token[0, 0]
    changed = given.clone()
    changed[:, :3] += 0.1
    torch.testing.assert_close(head(given), head(changed))


def test_parameters_of_vit_base_with_a_thousand_classes() -> None:
    with torch.device("meta"):
        head = AttentiveHead(768, 12, 1000)
    unused_norm = 2 * 768  # of the authors' code, in the published count
    assert sum(p.numel() for p in head.parameters()) + unused_norm == 3_137_512
