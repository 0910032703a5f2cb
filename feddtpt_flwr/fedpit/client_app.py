"""FedPIT's client: an adapter in, an adapter and some numbers out."""

from logging import INFO, WARNING

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import log

from feddtpt_flwr import logs
from feddtpt_flwr.discretion import discretion
from feddtpt_flwr.fedpit.local_round import client_rng, local_round, memorisation
from feddtpt_flwr.fedpit.node import Node, adapted_model, check_choices, load_node
from strategies.adapters import Adapter, from_record, stack_layers, to_record, unstack_layers
from strategies.fedpit import PROXIMAL_MU_KEY

app = ClientApp(mods=[discretion])

CLIENT_KEY = "client"
MEMORISATION_KEY = "memorisation"
START_KEY = "memorisation-start"


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on private and synthetic data; upload what `local_round` mixes of both.

    In the first round the answer also tells how much is given away before any training.
    """
    node, adapter, server_round = _read(message, context)
    config = node.config
    model = adapted_model(config)
    check_choices(config, model, node.private)
    sent = message.content.config_records["config"]
    rng = client_rng(config.seed, server_round, node.name)
    before = {}
    if server_round == 1:
        shown = node.private[: config.leakage_size]
        before[START_KEY] = memorisation(model, adapter, shown)[0]
    trained = local_round(
        model,
        adapter,
        node.private,
        config,
        proximal_mu=float(str(sent[PROXIMAL_MU_KEY])),
        rng=rng,
    )
    metrics = {**trained.metrics, **before}
    log(
        INFO,
        "round %d, client %s: %s",
        server_round,
        node.name,
        ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()),
    )
    if shortened := metrics["shortened"]:
        log(
            WARNING,
            "round %d, client %s: %d of %d private examples are longer than max-instruction-tokens "
            "= %d or max-response-tokens = %d, and cut",
            server_round,
            node.name,
            shortened,
            len(node.private),
            config.max_instruction_tokens,
            config.max_response_tokens,
        )
    upload = to_record(stack_layers(trained.upload(config)), config.upload_dtype)
    content = RecordDict({"arrays": upload})
    return _reply(message, node, content, metrics)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure how much of the private responses the global adapter gives away."""
    node, adapter, _ = _read(message, context)
    shown = node.private[: node.config.leakage_size]
    leaked, number = memorisation(adapted_model(node.config), adapter, shown)
    metrics = {"num-examples": number, MEMORISATION_KEY: leaked}
    return _reply(message, node, RecordDict(), metrics)


def _read(message: Message, context: Context) -> tuple[Node, Adapter, int]:
    """Return the node, the global adapter and the round's number."""
    logs.begin(run=str(context.run_id), node=f"node-{context.node_id}")
    node = load_node(context.run_config, context.node_config, context.node_id)
    arrays = message.content.array_records["arrays"]
    adapter = unstack_layers(from_record(arrays, node.config.upload_dtype))
    server_round = message.content.config_records["config"]["server-round"]
    logs.add(node=node.name, round=int(str(server_round)))
    return node, adapter, int(str(server_round))


def _reply(
    message: Message, node: Node, content: RecordDict, metrics: dict[str, int | float]
) -> Message:
    content["metrics"] = MetricRecord({**metrics})
    content["about"] = ConfigRecord({CLIENT_KEY: node.name})
    return Message(content=content, reply_to=message)
