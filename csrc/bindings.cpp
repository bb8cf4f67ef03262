// The Python face of the kernels: states are NumPy arrays that Python owns, and are changed in place.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cpu.hpp"
#include "job.hpp"
#include "threads.hpp"

namespace py = pybind11;
using namespace indexer;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// A state as the kernels see it, and the arrays that keep its memory alive.
template <typename State>
struct Held {
  State state;
  std::vector<py::array> arrays;

  template <typename T>
  T* hold(const Array<T>& array) {
    arrays.push_back(array);
    return const_cast<T*>(array.data());
  }
};

struct HeldHistogram : Held<Histogram> {
  HeldHistogram(const Array<std::uint32_t>& low, const Array<std::uint32_t>& high, const Array<std::uint16_t>& recent,
                const Array<std::int32_t>& recent_tokens) {
    state = {hold(low), hold(high), hold(recent), hold(recent_tokens)};
  }
};

struct HeldMoments : Held<Moments> {
  HeldMoments(const Array<std::int64_t>& nan, const Array<std::int64_t>& inf, const Array<float>& minimum,
              const Array<float>& maximum, const Array<std::int64_t>& sums, const Array<std::int32_t>& pending) {
    state = {hold(nan), hold(inf), hold(minimum), hold(maximum), hold(sums), hold(pending)};
  }
};

struct HeldPlaces : Held<Places> {
  HeldPlaces(std::int64_t before, std::int64_t after, const Array<float>& value, const Array<float>& up,
             const Array<std::int64_t>& document, const Array<std::int64_t>& sequence,
             const Array<std::int32_t>& position, const Array<std::int32_t>& window_start,
             const Array<std::int32_t>& window_length, const Array<std::int32_t>& token_ids,
             const Array<float>& activations) {
    state.places = value.shape(1);
    state.before = before;
    state.after = after;
    state.value = hold(value);
    state.up = hold(up);
    state.document = hold(document);
    state.sequence = hold(sequence);
    state.position = hold(position);
    state.window_start = hold(window_start);
    state.window_length = hold(window_length);
    state.token_ids = hold(token_ids);
    state.activations = hold(activations);
  }
};

struct HeldTopK : Held<TopK> {
  HeldTopK(const HeldPlaces& places, bool largest, int by, bool distinct, const Array<float>& threshold,
           const Array<std::int32_t>& worst, const Array<std::int32_t>& filled, const Array<std::uint64_t>& passage) {
    arrays = places.arrays;
    static_cast<Places&>(state) = places.state;
    state.largest = largest;
    state.by = static_cast<Competitor>(by);
    state.distinct = distinct;
    state.threshold = hold(threshold);
    state.worst = hold(worst);
    state.filled = hold(filled);
    state.passage = hold(passage);
  }
};

struct HeldBands : Held<Bands> {
  // of some units of a layer the rows of bars are apart
  HeldBands(const HeldPlaces& places, std::int64_t samples, const Array<std::uint64_t>& key,
            const py::array_t<std::uint32_t>& bars, const Array<std::uint64_t>& hash) {
    arrays = places.arrays;
    static_cast<Places&>(state) = places.state;
    state.samples = samples;
    state.key = hold(key);
    arrays.push_back(bars);
    state.bars = const_cast<std::uint32_t*>(bars.data());
    state.bars_row = bars.strides(0) / static_cast<std::int64_t>(sizeof(std::uint32_t));
    state.hash = hold(hash);
  }
};

struct HeldBatch : Held<Batch> {
  HeldBatch(const Array<std::int64_t>& start, const Array<std::int64_t>& length, const Array<std::int64_t>& document,
            const Array<std::int64_t>& ordinal, const Array<std::int32_t>& token_ids, const Array<bool>& counted,
            const Array<std::int64_t>& first_token, const Array<std::int64_t>& tokens,
            const std::optional<Array<std::int64_t>>& at) {
    state.start = hold(start);
    state.length = hold(length);
    state.document = hold(document);
    state.ordinal = hold(ordinal);
    state.token_ids = hold(token_ids);
    state.counted = reinterpret_cast<const std::uint8_t*>(hold(counted));
    state.sequences = start.shape(0);
    state.rows = counted.shape(0);
    state.first_token = hold(first_token);
    state.tokens = hold(tokens);
    state.at = at ? hold(*at) : nullptr;
  }
};

Matrix matrix_at(std::uintptr_t address, std::int64_t row_stride, int dtype) {
  return {reinterpret_cast<void*>(address), row_stride, static_cast<DType>(dtype)};
}

// The process's threads, made at first use and again after a fork (threads do not survive one) or a change of number.
class SharedThreads {
 public:
  void run(int threads, std::int64_t tasks, const std::function<void(std::int64_t)>& task) {
    if (const OpenMPParallel parallel = openmp_parallel(); parallel && threads > 1 && tasks > 1)
      return run_on_openmp(parallel, threads, tasks, task);
    std::lock_guard<std::mutex> lock(mutex_);
    if (owner_ != getpid()) (void)pool_.release();
    if (!pool_ || pool_->size() != threads) {
      pool_ = std::make_unique<Threads>(threads);
      owner_ = getpid();
    }
    pool_->run(tasks, task);
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<Threads> pool_;
  pid_t owner_ = 0;
};

SharedThreads& shared_threads() {
  // never destroyed: joining threads while the interpreter exits could wait for ever
  static SharedThreads* threads = new SharedThreads;
  return *threads;
}

InstructionSet chosen_instruction_set() {
  const char* name = std::getenv("NEURON_INDEXER_ISA");
  return choose_instruction_set(name ? name : "");
}

void process(int function, std::uintptr_t gate, std::int64_t gate_stride, std::uintptr_t up, std::int64_t up_stride,
             std::uintptr_t out, std::int64_t out_stride, int dtype, std::int64_t units, const HeldBatch& batch,
             const HeldHistogram* histogram, const HeldMoments* moments, const HeldTopK* top, const HeldTopK* bottom,
             const HeldBands* samples, int threads) {
  Job job;
  job.function = static_cast<Function>(function);
  job.gate = matrix_at(gate, gate_stride, dtype);
  job.up = matrix_at(up, up_stride, dtype);
  job.out = matrix_at(out, out_stride, dtype);
  job.units = units;
  job.batch = batch.state;
  job.histogram = histogram ? &histogram->state : nullptr;
  job.moments = moments ? &moments->state : nullptr;
  job.top = top ? &top->state : nullptr;
  job.bottom = bottom ? &bottom->state : nullptr;
  job.samples = samples ? &samples->state : nullptr;
  const ProcessBlock process_block = chosen_instruction_set().process_block;
  py::gil_scoped_release release;
  shared_threads().run(threads, (units + kBlockUnits - 1) / kBlockUnits,
                       [&](std::int64_t block) { process_block(job, block * kBlockUnits); });
}

}  // namespace

PYBIND11_MODULE(_cpp, module) {
  module.doc() = "Statistics of neuron activations on the CPU; indexer_kernels wraps and documents it.";

  py::class_<HeldHistogram>(module, "Histogram")
      .def(py::init<Array<std::uint32_t>, Array<std::uint32_t>, Array<std::uint16_t>, Array<std::int32_t>>(),
           py::arg("low").noconvert(), py::arg("high").noconvert(), py::arg("recent").noconvert(),
           py::arg("recent_tokens").noconvert());

  py::class_<HeldMoments>(module, "Moments")
      .def(py::init<Array<std::int64_t>, Array<std::int64_t>, Array<float>, Array<float>, Array<std::int64_t>,
                    Array<std::int32_t>>(),
           py::arg("nan").noconvert(), py::arg("inf").noconvert(), py::arg("minimum").noconvert(),
           py::arg("maximum").noconvert(), py::arg("sums").noconvert(), py::arg("pending").noconvert());

  py::class_<HeldPlaces>(module, "Places")
      .def(py::init<std::int64_t, std::int64_t, Array<float>, Array<float>, Array<std::int64_t>, Array<std::int64_t>,
                    Array<std::int32_t>, Array<std::int32_t>, Array<std::int32_t>, Array<std::int32_t>, Array<float>>(),
           py::arg("before"), py::arg("after"), py::arg("value").noconvert(), py::arg("up").noconvert(),
           py::arg("document").noconvert(), py::arg("sequence").noconvert(), py::arg("position").noconvert(),
           py::arg("window_start").noconvert(), py::arg("window_length").noconvert(), py::arg("token_ids").noconvert(),
           py::arg("activations").noconvert());

  py::class_<HeldTopK>(module, "TopK")
      .def(py::init<const HeldPlaces&, bool, int, bool, Array<float>, Array<std::int32_t>, Array<std::int32_t>,
                    Array<std::uint64_t>>(),
           py::arg("places"), py::arg("largest"), py::arg("by"), py::arg("distinct"), py::arg("threshold").noconvert(),
           py::arg("worst").noconvert(), py::arg("filled").noconvert(), py::arg("passage").noconvert());

  py::class_<HeldBands>(module, "Bands")
      .def(py::init<const HeldPlaces&, std::int64_t, Array<std::uint64_t>, py::array_t<std::uint32_t>, Array<std::uint64_t>>(),
           py::arg("places"), py::arg("samples"), py::arg("key").noconvert(), py::arg("bars").noconvert(),
           py::arg("hash").noconvert());

  py::class_<HeldBatch>(module, "Batch")
      .def(py::init<Array<std::int64_t>, Array<std::int64_t>, Array<std::int64_t>, Array<std::int64_t>,
                    Array<std::int32_t>, Array<bool>, Array<std::int64_t>, Array<std::int64_t>,
                    std::optional<Array<std::int64_t>>>(),
           py::arg("start").noconvert(), py::arg("length").noconvert(), py::arg("document").noconvert(),
           py::arg("ordinal").noconvert(), py::arg("token_ids").noconvert(), py::arg("counted").noconvert(),
           py::arg("first_token").noconvert(), py::arg("tokens").noconvert(), py::arg("at").noconvert());

  module.def("process", &process, py::arg("function"), py::arg("gate"), py::arg("gate_stride"), py::arg("up"),
             py::arg("up_stride"), py::arg("out"), py::arg("out_stride"), py::arg("dtype"), py::arg("units"),
             py::arg("batch"), py::arg("histogram").none(true), py::arg("moments").none(true),
             py::arg("top").none(true), py::arg("bottom").none(true), py::arg("samples").none(true), py::arg("threads"));

  module.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const InstructionSet& set : instruction_sets()) names.emplace_back(set.name);
    return names;
  });
  module.def("instruction_set", [] { return std::string(chosen_instruction_set().name); });
}
