// The sampler alone, on logits that the caller has: what tests compare with its twin and benchmarks time. In a step the
// same function is called where the logits are (executor.cpp).
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "sampler.hpp"
#include "thread_pool.hpp"

namespace nb = nanobind;

namespace puna {

namespace {

template <class T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Table = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out1 = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out2 = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool good, const char* what) {
  if (!good) throw std::invalid_argument(what);
}

class Sampler {
 public:
  // No more than `threads` get rows, whatever cores there are.
  Sampler(const std::string& path, int threads) : pool_(std::clamp(threads, 1, 256), 256, false) {
    const Paths paths = available_paths();
    for (int i = paths.count - 1; i >= 0; --i)
      if (path == "auto" || path == paths.tables[i]->name) kernels_ = paths.tables[i];
    require(kernels_ != nullptr, "this instruction path cannot run here");
    scratch_.resize(static_cast<size_t>(pool_.threads()));
  }

  // `rows` is a puna.kernels.batch.SampleRows whose `index` chooses rows of `logits` (each once: they are worked on in
  // place, and are as they were afterwards).
  void sample(Out2<float> logits, nb::object rows, Out1<int32_t> tokens, Out1<float> logprob, Out1<int32_t> rank,
              Out2<int32_t> top_ids, Out2<float> top_logprobs) {
    const size_t count = tokens.shape(0);
    const auto column = [&]<class T>(const char* name, T, size_t length) {
      const auto array = nb::cast<Column<T>>(rows.attr(name));
      require(array.shape(0) == length, "arrays of one batch differ in length");
      return array.data();
    };
    const auto whole = [&](const char* name) { return column(name, int32_t{}, count); };
    const auto real = [&](const char* name) { return column(name, float{}, count); };
    const auto starts = [&](const char* name, const char* ids) {
      const int32_t* start = column(name, int32_t{}, count + 1);
      require(start[count] >= 0 && static_cast<size_t>(start[count]) <= nb::cast<Column<int32_t>>(rows.attr(ids)).shape(0),
              "a ragged list ends behind its array");
      return start;
    };
    const auto list = [&](const char* name) { return nb::cast<Column<int32_t>>(rows.attr(name)).data(); };
    const auto history = nb::cast<Table<int32_t>>(rows.attr("history"));
    const auto mask = nb::cast<Table<uint32_t>>(rows.attr("mask"));
    const auto bias = nb::cast<Column<float>>(rows.attr("bias_values"));
    require(mask.shape(0) == 0 || mask.shape(0) == count, "arrays of one batch differ in length");
    require(bias.shape(0) == nb::cast<Column<int32_t>>(rows.attr("bias_ids")).shape(0), "a bias without its token");
    require(logprob.shape(0) == count && rank.shape(0) == count && top_ids.shape(0) == count &&
                top_logprobs.shape(0) == count && top_ids.shape(1) == top_logprobs.shape(1),
            "results differ in length");
    SampleView view{static_cast<int64_t>(count), whole("index"), whole("target"), whole("num_logprobs"),
                    real("temperature"), whole("top_k"), real("top_p"), real("min_p"), real("repetition"),
                    real("frequency"), real("presence"), column("seed", uint64_t{}, count), whole("position"),
                    history.data(), static_cast<int64_t>(history.shape(0)), static_cast<int64_t>(history.shape(1)),
                    whole("history_row"), whole("prompt_len"), whole("total_len"), starts("allowed_start", "allowed_ids"),
                    list("allowed_ids"), starts("banned_start", "banned_ids"), list("banned_ids"),
                    starts("bias_start", "bias_ids"), list("bias_ids"), bias.data(),
                    mask.shape(0) > 0 ? mask.data() : nullptr, static_cast<int64_t>(mask.shape(1))};
    const SampleOut out{tokens.data(), logprob.data(), rank.data(), top_ids.data(), top_logprobs.data(),
                        static_cast<int64_t>(top_ids.shape(1))};
    const int64_t vocab = static_cast<int64_t>(logits.shape(1));
    require(vocab > 0, "logits have no columns");
    check_samples(view, out, static_cast<int64_t>(logits.shape(0)), vocab);
    std::vector<bool> seen(logits.shape(0));
    for (size_t s = 0; s < count; ++s) {
      require(!seen[static_cast<size_t>(view.index[s])], "a row of logits is chosen twice");
      seen[static_cast<size_t>(view.index[s])] = true;
    }
    nb::gil_scoped_release release;
    const ThreadPool::Step step(pool_);
    pool_.run(view.count, 1, [&](int64_t first, int64_t last, int thread) {
      for (int64_t s = first; s < last; ++s)
        sample_row(*kernels_, view, s, logits.data() + view.index[s] * vocab, vocab, nullptr,
                   scratch_[static_cast<size_t>(thread)], out);
    });
  }

 private:
  ThreadPool pool_;
  const KernelTable* kernels_ = nullptr;
  std::vector<SampleScratch> scratch_;
};

}  // namespace

void bind_sampler(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler").def(nb::init<const std::string&, int>()).def("sample", &Sampler::sample);
}

}  // namespace puna
