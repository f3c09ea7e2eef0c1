"""What people log to: TensorBoard, MLflow, SQLite, files, ``torch.save``."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler
from async_trainer.errors import CaptureError, ConfigurationError
from tests.proxy.kit import Gate


@pytest.fixture
def gate(handler: CallbacksHandler) -> Iterator[Gate]:
    """Holds the lane "io" until the test opens it."""
    gate = Gate()
    handler.proxy(gate, lane="io").wait()
    assert gate.reached.wait(10)
    yield gate
    gate.opened.set()


class TestTensorBoard:
    """``torch.utils.tensorboard.SummaryWriter``, read back with TensorBoard's own reader."""

    @pytest.fixture(autouse=True)
    def needs_tensorboard(self) -> None:
        pytest.importorskip("tensorboard")

    @staticmethod
    def writer(path: Path) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(path))

    @staticmethod
    def read(path: Path) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(path), size_guidance={"histograms": 0, "tensors": 0}).Reload()

    def test_scalars_are_all_there_in_order(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        with handler.proxy(self.writer(tmp_path)) as writer:
            assert writer.log_dir == str(tmp_path)
            for step in range(200):
                writer.add_scalar("loss", 1 / (step + 1), step)
                writer.add_scalar("lr", scalar_value=torch.tensor(0.1), global_step=step)
        assert handler.flush().delivered == 402
        seen = self.read(tmp_path)
        assert [event.step for event in seen.Scalars("loss")] == list(range(200))
        assert [event.value for event in seen.Scalars("loss")] == pytest.approx([1 / (n + 1) for n in range(200)])
        assert [event.value for event in seen.Scalars("lr")] == pytest.approx([0.1] * 200)

    def test_a_histogram_of_a_live_parameter_shows_it_as_it_was(
        self, handler: CallbacksHandler, tmp_path: Path, gate: Gate
    ) -> None:
        net = torch.nn.Linear(50, 40)
        with torch.no_grad():
            net.weight.fill_(3)
        with handler.proxy(self.writer(tmp_path), lane="io") as writer:
            writer.add_histogram("weight", net.weight, 0)
            writer.add_histogram("gradient", net.weight.detach() * 2, 0)
            with torch.no_grad():
                net.weight.fill_(-7)
        gate.opened.set()
        handler.flush()
        seen = self.read(tmp_path)
        for tag, value in (("weight", 3), ("gradient", 6)):
            histogram = seen.Histograms(tag)[0].histogram_value
            assert (histogram.min, histogram.max, histogram.num) == (value, value, 2000)

    @pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
    def test_graph_text_image_and_hparams_are_written(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        with handler.proxy(self.writer(tmp_path)) as writer:
            writer.add_graph(net, torch.ones(1, 3))
            writer.add_text("note", "hello")
            writer.add_image("batch", torch.zeros(3, 4, 4))
            writer.add_hparams({"lr": 0.1}, {"best": 0.5})
        report = handler.flush()
        assert (report.delivered, report.failed) == (6, 0)
        seen = self.read(tmp_path)
        names = [node.name for node in _graph(seen).node]
        assert any("Linear" in name for name in names)
        assert any("ReLU" in name for name in names)
        assert seen.Tensors("note/text_summary")[0].tensor_proto.string_val == [b"hello"]
        assert seen.Images("batch")[0].width == 4

    def test_the_training_is_not_changed(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        def train(writer: Any) -> list[float]:
            torch.manual_seed(0)
            net = torch.nn.Linear(4, 1)
            optimizer = torch.optim.Adam(net.parameters())
            losses = []
            for step in range(20):
                loss = net(torch.rand(8, 4)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if writer is not None:
                    writer.add_scalar("loss", loss, step)
                    writer.add_histogram("weight", net.weight, step)
                losses.append(loss.item())
            return losses

        with handler.proxy(self.writer(tmp_path)) as writer:
            losses = train(writer)
        handler.flush()
        assert losses == train(None)
        assert [event.value for event in self.read(tmp_path).Scalars("loss")] == pytest.approx(losses)


def _graph(seen: Any) -> Any:
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = GraphDef()
    graph.ParseFromString(seen.Graph().SerializeToString())
    return graph


class TestMLflow:
    """The ``mlflow`` module, with a store of files."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        mlflow = pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri((tmp_path / "store").as_uri())
        mlflow.set_experiment("digits")
        yield mlflow
        mlflow.set_tracking_uri(before)

    @staticmethod
    def runs(store: Any) -> Any:
        client = store.MlflowClient()
        return client.search_runs([client.get_experiment_by_name("digits").experiment_id])

    def test_a_run_is_written_by_a_thread_that_it_is_local_to(
        self, handler: CallbacksHandler, store: Any, tmp_path: Path
    ) -> None:
        artifact = tmp_path / "note.txt"
        artifact.write_text("hello")
        proxy = handler.proxy(store)
        params = {"lr": 0.1}
        with proxy.start_run(run_name="first") as run:
            proxy.log_params(params)
            params["lr"] = 0.2
            for step in range(20):
                proxy.log_metric("loss", 1 / (step + 1), step=step)
            proxy.log_metrics({"accuracy": 0.9}, step=20)
            proxy.set_tag("own id", run.info.run_id)
            proxy.log_artifact(str(artifact))
            proxy.log_dict({"classes": [1, 2]}, "classes.json")
            assert store.active_run() is None  # here: it is the lane's
        report = handler.flush()
        assert (report.failed, report.lost) == (0, 0)

        client = store.MlflowClient()
        (done,) = self.runs(store)
        assert done.info.status == "FINISHED"
        assert done.info.run_name == "first"
        assert done.data.params == {"lr": "0.1"}
        assert done.data.tags["own id"] == done.info.run_id
        history = client.get_metric_history(done.info.run_id, "loss")
        assert [(one.step, one.value) for one in history] == [(step, 1 / (step + 1)) for step in range(20)]
        copies = Path(client.download_artifacts(done.info.run_id, "", str(tmp_path)))
        assert (copies / "note.txt").read_text() == "hello"
        assert json.loads((copies / "classes.json").read_text()) == {"classes": [1, 2]}

    def test_a_run_whose_body_fails_is_marked_failed(self, handler: CallbacksHandler, store: Any) -> None:
        proxy = handler.proxy(store)
        with pytest.raises(ValueError, match="nan"), proxy.start_run():  # noqa: PT012
            proxy.log_param("lr", 0.1)
            raise ValueError("nan")
        handler.flush()
        (done,) = self.runs(store)
        assert done.info.status == "FAILED"

    def test_a_module_is_itself_in_text_and_version(self, handler: CallbacksHandler, store: Any) -> None:
        proxy = handler.proxy(store)
        assert proxy.__version__ == store.__version__
        assert repr(proxy) == "<proxy of mlflow, lane mlflow>"


class TestSQLite:
    """A connection belongs to the thread that made it."""

    def test_made_by_a_factory_it_works(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        path = tmp_path / "rows.db"
        connection = handler.proxy(factory=lambda: sqlite3.connect(path), name="rows")
        connection.execute("create table rows (step integer, loss real)")
        for step in range(50):
            with connection:
                connection.execute("insert into rows values (?, ?)", (step, step / 2))
        connection.close()
        report = handler.flush()
        assert (report.delivered, report.failed) == (152, 0)
        assert list(sqlite3.connect(path).execute("select * from rows")) == [(step, step / 2) for step in range(50)]

    def test_a_body_that_raises_rolls_back(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        path = tmp_path / "rows.db"
        connection = handler.proxy(factory=lambda: sqlite3.connect(path))
        connection.execute("create table rows (step integer)")
        with pytest.raises(ValueError, match="nan"), connection:  # noqa: PT012
            connection.execute("insert into rows values (1)")
            raise ValueError("nan")
        handler.flush()
        assert list(sqlite3.connect(path).execute("select * from rows")) == []

    def test_rows_are_read_on_the_lane(self, handler: CallbacksHandler) -> None:
        connection = handler.proxy(factory=lambda: sqlite3.connect(":memory:"), lane="db")
        fetch = handler.proxy(lambda cursor: cursor.fetchall(), lane="db")
        assert fetch(connection.execute("select 1, 2")).wait() == [(1, 2)]

    def test_made_elsewhere_it_fails_in_its_lane_and_says_what_to_do(
        self, handler: CallbacksHandler, tmp_path: Path
    ) -> None:
        connection = sqlite3.connect(tmp_path / "rows.db")
        proxy = handler.proxy(connection, retries=3)
        with pytest.raises(
            ConfigurationError,
            match=r"only be used in that same thread.*let the lane make it: handler\.proxy\(factory=",
        ) as raised:
            proxy.execute("select 1").wait()
        assert isinstance(raised.value.__cause__, sqlite3.ProgrammingError)
        assert handler.stats().errors[0].attempt == 1
        connection.close()


class TestFunctions:
    """Functions, and objects that are called."""

    def test_a_state_dict_that_changes_right_after_is_saved_as_it_was(
        self, handler: CallbacksHandler, tmp_path: Path, gate: Gate
    ) -> None:
        save = handler.proxy(torch.save, lane="io")
        net = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300))
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.rand(4, 300)).sum().backward()
        optimizer.step()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        moments = optimizer.state_dict()["state"][0]["exp_avg"].clone()
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
        save(state, tmp_path / "a.pt")
        state["epoch"] = 4
        net(torch.rand(4, 300)).sum().backward()
        optimizer.step()
        gate.opened.set()
        handler.flush()
        saved = torch.load(tmp_path / "a.pt")
        assert saved["epoch"] == 3
        assert all(torch.equal(saved["net"][name], tensor) for name, tensor in before.items())
        assert torch.equal(saved["optimizer"]["state"][0]["exp_avg"], moments)
        assert not torch.equal(before["0.weight"], net.state_dict()["0.weight"])

    def test_a_module_may_be_saved_whole(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        net = torch.nn.Linear(3, 2)
        handler.proxy(torch.save)(net, tmp_path / "net.pt").wait()
        with torch.no_grad():
            net.weight.zero_()
        saved = torch.load(tmp_path / "net.pt", weights_only=False)
        assert type(saved) is torch.nn.Linear
        assert saved.weight.abs().sum() > 0

    def test_an_object_that_is_called(self, handler: CallbacksHandler) -> None:
        class Counter:
            def __init__(self) -> None:
                self.count = 0

            def __call__(self, by: int) -> int:
                self.count += by
                return self.count

        counter = Counter()
        proxy = handler.proxy(counter)
        proxy(1)
        assert proxy(2).wait() == 3
        assert proxy.count == 3

    def test_a_class_makes_its_objects_on_the_lane(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        with handler.proxy(sqlite3.connect)(tmp_path / "rows.db") as connection:
            connection.execute("create table rows (step integer)")
        assert handler.flush().failed == 0
        assert list(sqlite3.connect(tmp_path / "rows.db").execute("select * from rows")) == []

    def test_an_async_function_runs_as_a_task(self, handler: CallbacksHandler) -> None:
        import anyio

        seen: list[Any] = []

        async def send(rows: list[int]) -> int:
            await anyio.sleep(0)
            seen.append(list(rows))
            return len(rows)

        proxy = handler.proxy(send)
        rows = [1]
        handle = proxy(rows)
        rows.append(2)
        assert handle.wait() == 1
        assert seen == [[1]]
        assert handler.stats().lanes["send"].placement == "task"


class Client:
    """Has async methods, and others."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, model: Any) -> str:
        import anyio

        await anyio.sleep(0)
        self.sent.append(model.weight.sum().item())
        return "sent"

    async def fail(self) -> None:
        raise OSError("no route")

    def count(self) -> int:
        return len(self.sent)


class TestAsync:
    """Objects with async methods."""

    def test_they_are_awaited_in_order_on_a_task_lane(self, handler: CallbacksHandler) -> None:
        client = Client()
        proxy = handler.proxy(client, placement="task")
        net = torch.nn.Linear(1, 1, bias=False)
        for value in range(3):
            with torch.no_grad():
                net.weight.fill_(value)
            handle = proxy.send(net)
        with torch.no_grad():
            net.weight.fill_(-1)
        assert handle.wait() == "sent"
        assert proxy.count().wait() == 3
        assert client.sent == [0, 1, 2]

    def test_what_they_raise_is_raised_by_wait(self, handler: CallbacksHandler) -> None:
        with pytest.raises(OSError, match="no route"):
            handler.proxy(Client(), placement="task").fail().wait()

    def test_in_a_thread_they_fail_by_name(self, handler: CallbacksHandler) -> None:
        client = Client()
        with pytest.raises(ConfigurationError, match=r"client\.send is async.*use placement='task'"):
            handler.proxy(client).send(torch.nn.Linear(1, 1)).wait()
        assert client.sent == []

    def test_in_synchronous_mode_they_are_awaited_too(self) -> None:
        client = Client()
        with CallbacksHandler(synchronous=True) as handler:
            proxy = handler.proxy(client, placement="task")
            proxy.send(torch.nn.Linear(1, 1))
            assert client.count() == 1
            with pytest.raises(OSError, match="no route"):
                proxy.fail()


class TestFiles:
    """An open file."""

    def test_lines_are_written_in_order_and_the_file_closed(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        path = tmp_path / "log.csv"
        file = open(path, "w")  # noqa: SIM115
        with handler.proxy(file) as proxy:
            for step in range(100):
                print(step, step / 2, sep=",", file=proxy)
            proxy.writelines(["end", "\n"])
            json.dump({"a": 1}, proxy)
            assert proxy.name == str(path)
        handler.flush()
        assert file.closed
        assert proxy.closed
        lines = path.read_text().splitlines()
        assert lines == [*(f"{step},{step / 2}" for step in range(100)), "end", '{"a": 1}']

    def test_reading_it_is_refused_by_name(self, handler: CallbacksHandler) -> None:
        with open(__file__) as file:
            proxy = handler.proxy(file)
            with pytest.raises(AttributeError, match=r"TextIOWrapper.*__iter__ needs the answer at once"):
                list(proxy)
            assert proxy.readline().wait().startswith('"""')
            handler.flush()

    def test_a_file_is_no_argument_of_another_s_call(self, handler: CallbacksHandler, tmp_path: Path) -> None:
        with (
            open(tmp_path / "a.pt", "wb") as file,
            pytest.raises(CaptureError, match=r"save\.__call__: argument 2: .*BufferedWriter can't be copied"),
        ):
            handler.proxy(torch.save)({}, file).wait()
