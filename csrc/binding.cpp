// The Python face of the core: one class, whose `step` is one call a step and releases the interpreter lock.
// Shapes are checked here, values in Executor::check; the Python side is puna/kernels/cpu/binding.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>

#include "executor.hpp"
#include "limits.hpp"

namespace nb = nanobind;

namespace puna {

void bind_sampler(nb::module_& m);  // binding_sampler.cpp

namespace {

template <class T>
using In1 = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using In2 = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out1 = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out2 = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using OpTuple = std::tuple<int, std::vector<int64_t>, std::vector<float>>;

std::vector<Op> to_ops(const std::vector<OpTuple>& tuples) {
  std::vector<Op> ops;
  for (const auto& [kind, ints, floats] : tuples) {
    if (kind < 0 || kind > static_cast<int>(OpKind::scale_rows)) throw std::invalid_argument("unknown operator");
    ops.push_back({static_cast<OpKind>(kind), ints, floats});
  }
  return ops;
}

CacheType cache_type(const std::string& name) {
  if (name == "f32") return CacheType::f32;
  if (name == "bf16") return CacheType::bf16;
  if (name == "f16") return CacheType::f16;
  if (name == "int8") return CacheType::int8;
  throw std::invalid_argument("cache type '" + name + "' is not one of f32, bf16, f16, int8");
}

void same_length(size_t length, std::initializer_list<size_t> others) {
  for (const size_t other : others)
    if (other != length) throw std::invalid_argument("arrays of one batch differ in length");
}

class Core {
 public:
  Core(const std::string& path, int threads, int cores, bool pin) : executor_(path, threads, cores, pin) {}

  int add_weight(const std::string& type, In1<uint8_t> raw, int64_t rows, int64_t width, bool matrix, bool integer) {
    nb::gil_scoped_release release;
    return executor_.add_weight(type, raw.data(), raw.size(), rows, width, matrix, integer);
  }

  void bind(const std::vector<int64_t>& widths, const std::vector<OpTuple>& body, const std::vector<OpTuple>& head,
            const std::vector<std::pair<int64_t, int64_t>>& layers, int hidden, int logits, int64_t num_blocks,
            int64_t tier_blocks, int block_size, const std::string& cache, bool tiles, int64_t touched_ahead) {
    std::vector<KVLayer> shapes;
    for (const auto& [kv_heads, head_dim] : layers) shapes.push_back({kv_heads, head_dim});
    executor_.bind(widths, to_ops(body), to_ops(head), std::move(shapes), hidden, logits,
                   {num_blocks, tier_blocks, block_size, cache_type(cache), tiles, touched_ahead});
  }

  // Both ways to run a step give the nanoseconds that its sampling took.
  int64_t step(In1<int32_t> token_ids, In1<int32_t> positions, In1<int32_t> query_start, In2<int32_t> tables,
               In2<int32_t> moves,
               // samples
               In1<int32_t> index, In1<int32_t> target, In1<int32_t> num_logprobs, In1<float> temperature,
               In1<int32_t> top_k, In1<float> top_p, In1<float> min_p, In1<float> repetition, In1<float> frequency,
               In1<float> presence, In1<uint64_t> seed, In1<int32_t> position, In2<int32_t> history,
               In1<int32_t> history_row, In1<int32_t> prompt_len, In1<int32_t> total_len, In1<int32_t> allowed_start,
               In1<int32_t> allowed_ids, In1<int32_t> banned_start, In1<int32_t> banned_ids, In1<int32_t> bias_start,
               In1<int32_t> bias_ids, In1<float> bias_values, In2<uint32_t> mask,
               Out1<uint32_t> ready,
               // results
               Out1<int32_t> tokens, Out1<float> logprob, Out1<int32_t> rank, Out2<int32_t> top_ids,
               Out2<float> top_logprobs, Out2<float> logits) {
    const size_t count = index.shape(0);
    same_length(token_ids.shape(0), {positions.shape(0)});
    same_length(query_start.shape(0), {tables.shape(0) + 1});
    same_length(3, {moves.shape(1)});
    same_length(count, {target.shape(0), num_logprobs.shape(0), temperature.shape(0), top_k.shape(0), top_p.shape(0),
                        min_p.shape(0), repetition.shape(0), frequency.shape(0), presence.shape(0), seed.shape(0),
                        position.shape(0), history_row.shape(0), prompt_len.shape(0), total_len.shape(0),
                        allowed_start.shape(0) - 1, banned_start.shape(0) - 1, bias_start.shape(0) - 1,
                        tokens.shape(0), logprob.shape(0), rank.shape(0), top_ids.shape(0), top_logprobs.shape(0)});
    same_length(top_ids.shape(1), {top_logprobs.shape(1)});
    same_length(bias_ids.shape(0), {bias_values.shape(0)});
    const auto ragged = [count](const In1<int32_t>& start, size_t length) {
      if (start.data()[count] < 0 || static_cast<size_t>(start.data()[count]) > length)
        throw std::invalid_argument("a ragged list ends behind its array");
    };
    ragged(allowed_start, allowed_ids.shape(0));
    ragged(banned_start, banned_ids.shape(0));
    ragged(bias_start, bias_ids.shape(0));
    StepView view{};
    view.tokens = static_cast<int64_t>(token_ids.shape(0));
    view.sequences = static_cast<int64_t>(tables.shape(0));
    view.table_width = static_cast<int64_t>(tables.shape(1));
    view.moves_count = static_cast<int64_t>(moves.shape(0));
    view.token_ids = token_ids.data();
    view.positions = positions.data();
    view.query_start = query_start.data();
    view.tables = tables.data();
    view.moves = moves.data();
    view.samples = {static_cast<int64_t>(count), index.data(), target.data(), num_logprobs.data(), temperature.data(),
                    top_k.data(), top_p.data(), min_p.data(), repetition.data(), frequency.data(), presence.data(),
                    seed.data(), position.data(), history.data(), static_cast<int64_t>(history.shape(0)),
                    static_cast<int64_t>(history.shape(1)),
                    history_row.data(), prompt_len.data(), total_len.data(), allowed_start.data(), allowed_ids.data(),
                    banned_start.data(), banned_ids.data(), bias_start.data(), bias_ids.data(), bias_values.data(),
                    mask.shape(0) > 0 ? mask.data() : nullptr, static_cast<int64_t>(mask.shape(1))};
    if (mask.shape(0) > 0) same_length(count, {mask.shape(0)});
    same_length(1, {ready.shape(0)});
    view.ready = ready.data();
    view.out = {tokens.data(), logprob.data(), rank.data(), top_ids.data(), top_logprobs.data(),
                static_cast<int64_t>(top_ids.shape(1))};
    view.logits = logits.shape(0) == count && count > 0 ? logits.data() : nullptr;
    last_ = view;
    nb::gil_scoped_release release;
    executor_.step(view);
    return executor_.sample_nanoseconds();
  }

  // The step before once more, on the same arrays with new numbers in them. The caller has kept all of them alive.
  int64_t step_again() {
    if (!last_.query_start) throw std::invalid_argument("there was no step before");
    nb::gil_scoped_release release;
    executor_.step(last_);
    return executor_.sample_nanoseconds();
  }

  // The counter lives in `shared` (8 bytes that the caller keeps alive, in shared memory say) from now on.
  void set_progress(Out1<uint64_t> shared) {
    if (shared.shape(0) != 1) throw std::invalid_argument("the progress counter is one uint64");
    static_assert(sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));
    executor_.set_progress(reinterpret_cast<std::atomic<uint64_t>*>(shared.data()));
  }

  Executor& executor() { return executor_; }

 private:
  Executor executor_;
  StepView last_{};
};

// Arrays are taken as they are or not at all: a converted copy would be gone before `step_again` reads it.
template <class... Args>
void def_step(nb::class_<Core>& core, int64_t (Core::*step)(Args...)) {
  const auto as_it_is = [](auto*) { return nb::arg().noconvert(); };
  core.def("step", step, as_it_is(static_cast<Args*>(nullptr))...);
}

}  // namespace

}  // namespace puna

NB_MODULE(_native, m) {
  using puna::Core;
  m.def("paths", [] {
    std::vector<std::string> names;
    const puna::Paths paths = puna::available_paths();
    for (int i = 0; i < paths.count; ++i) names.emplace_back(paths.tables[i]->name);
    return names;
  });
  const nb::call_guard<nb::gil_scoped_release> unlocked;
  m.def("read_bytes_per_second", &puna::read_bytes_per_second, unlocked);
  m.def("operations_per_second", &puna::operations_per_second, unlocked);
  m.def("barrier_seconds", &puna::barrier_seconds, unlocked);
  m.def("dispatch_seconds", &puna::dispatch_seconds, unlocked);
  nb::class_<Core> core(m, "Core");
  puna::def_step(core, &Core::step);
  core.def(nb::init<const std::string&, int, int, bool>())
      .def("add_weight", &Core::add_weight)
      .def("bind", &Core::bind)
      .def("step_again", &Core::step_again)
      .def("set_progress", &Core::set_progress)
      .def("progress", [](Core& c) { return c.executor().progress(); })
      .def("path", [](Core& c) { return std::string(c.executor().path()); })
      .def("threads", [](Core& c) { return c.executor().threads(); })
      .def("engaged_threads", [](Core& c) { return c.executor().engaged_threads(); })
      .def("packed_bytes", [](Core& c) { return c.executor().packed_bytes(); })
      .def("experts_scratch_bytes", [](Core& c) { return c.executor().experts_scratch_bytes(); })
      .def("profile", [](Core& c, bool on) { c.executor().profile(on); })
      .def("profile_times", [](Core& c) {
        std::vector<std::tuple<std::string, int64_t, int64_t, int64_t, int64_t>> rows;
        for (const puna::StageTime& t : c.executor().profile_times())
          rows.emplace_back(t.name, t.calls, t.nanoseconds, t.bytes, t.operations);
        return rows;
      })
      .def("break_batch_invariance", [](Core& c, bool broken) { c.executor().break_batch_invariance(broken); });
  puna::bind_sampler(m);
}
