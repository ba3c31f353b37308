#include "graph.h"

#include <algorithm>
#include <map>
#include <optional>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

constexpr std::size_t kMostDims = 8;
constexpr std::int64_t kMostOfDim = 1 << 24;

struct Described {
    std::vector<std::int64_t> dims;  // -1 where a run decides
    ort::ElementType type{};
};

Described described(const Runtime& runtime, ort::TypeInfo* given, const std::string& where) {
    const auto& api = runtime.api();
    const std::unique_ptr<ort::TypeInfo, void (*)(ort::TypeInfo*)> info(given, api.ReleaseTypeInfo);
    const auto check = [&](ort::Status* status) { runtime.check(status, where); };
    const ort::TensorInfo* tensor = nullptr;
    check(api.CastTypeInfoToTensorInfo(given, &tensor));
    if (!tensor) throw UserError(where + " is not a tensor");
    Described found;
    std::size_t num_dims = 0;
    check(api.GetTensorElementType(tensor, &found.type));
    check(api.GetDimensionsCount(tensor, &num_dims));
    if (num_dims > kMostDims) throw UserError(where + " has too many dimensions");
    found.dims.resize(num_dims);
    check(api.GetDimensions(tensor, found.dims.data(), num_dims));
    return found;
}

/// Inputs or outputs by their names.
std::map<std::string, Described> all_described(const Runtime& runtime, const ort::Session* session, bool are_inputs,
                                               const std::string& file) {
    const auto& api = runtime.api();
    const auto check = [&](ort::Status* status) { runtime.check(status, file); };
    ort::Allocator* allocator = nullptr;
    check(api.GetAllocatorWithDefaultOptions(&allocator));
    std::size_t count = 0;
    check((are_inputs ? api.SessionGetInputCount : api.SessionGetOutputCount)(session, &count));
    std::map<std::string, Described> found;
    for (std::size_t i = 0; i < count; ++i) {
        char* given = nullptr;
        check((are_inputs ? api.SessionGetInputName : api.SessionGetOutputName)(session, i, allocator, &given));
        const std::string name = given;
        check(api.AllocatorFree(allocator, given));
        ort::TypeInfo* info = nullptr;
        check((are_inputs ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo)(session, i, &info));
        found.emplace(name, described(runtime, info, std::string(file).append(": ").append(name)));
    }
    return found;
}

/// A dimension that the graph fixes.
std::size_t fixed(const Described& tensor, std::size_t place, const std::string& where) {
    const auto dim = tensor.dims.at(place);
    if (dim < 1 || dim > kMostOfDim) throw UserError(where + ": dimension " + std::to_string(place) + " is not fixed");
    return static_cast<std::size_t>(dim);
}

}  // namespace

std::size_t GraphShape::bytes_per_token() const {
    std::size_t elements = 0;
    for (const auto& tensor : cache) elements += tensor.heads * tensor.dim;
    return elements * element_bytes();
}

Graph::Graph(const Runtime& runtime, const std::filesystem::path& file, int num_threads)
    : runtime_(runtime),
      file_(file.string()),
      session_(nullptr, runtime.api().ReleaseSession),
      binding_(nullptr, runtime.api().ReleaseIoBinding),
      memory_(nullptr, runtime.api().ReleaseMemoryInfo) {
    open(file, num_threads);
    read_shape();
    const auto& api = runtime_.api();
    ort::IoBinding* binding = nullptr;
    runtime_.check(api.CreateIoBinding(session_.get(), &binding), file_);
    binding_.reset(binding);
    ort::MemoryInfo* memory = nullptr;
    runtime_.check(api.CreateCpuMemoryInfo(ort::kArenaAllocator, ort::kDefaultMemory, &memory), file_);
    memory_.reset(memory);
}

Graph::~Graph() = default;

void Graph::open(const std::filesystem::path& file, int num_threads) {
    const auto& api = runtime_.api();
    ort::SessionOptions* options = nullptr;
    runtime_.check(api.CreateSessionOptions(&options), file_);
    const Owned<ort::SessionOptions> owned(options, api.ReleaseSessionOptions);
    runtime_.check(api.SetIntraOpNumThreads(options, num_threads), file_);
    ort::Session* session = nullptr;
    runtime_.check(api.CreateSession(runtime_.env(), file.c_str(), options, &session), file_);
    session_.reset(session);
}

void Graph::read_shape() {
    const auto inputs = all_described(runtime_, session_.get(), true, file_);
    const auto outputs = all_described(runtime_, session_.get(), false, file_);
    for (const char* name : {"input_ids", "position_ids", "logit_positions", "seqlens_k", "total_length"})
        if (!inputs.contains(name))
            throw UserError(file_ + " has no input " + name + ": export the model without --portable");
    shape_.has_prefix = inputs.contains("prefix_length");
    const auto logits = outputs.find("logits");
    if (logits == outputs.end() || logits->second.dims.size() != 3 || logits->second.type != ort::ElementType::float32)
        throw UserError(file_ + " has no output logits [batch, outputs, vocabulary] of float32");
    shape_.vocabulary = fixed(logits->second, 2, file_ + ": logits");
    for (std::size_t layer = 0;; ++layer) {
        for (const char* part : {".key", ".value"}) {
            const auto name = std::to_string(layer) + part;
            const auto past = inputs.find("past." + name);
            if (past == inputs.end()) break;
            if (past->second.dims.size() != 4 || !outputs.contains("present." + name))
                throw UserError(file_ + ": past." + name + " is not a cache of four dimensions that comes out again");
            shape_.cache.push_back({name, fixed(past->second, 1, name), fixed(past->second, 3, name)});
            shape_.cache_type = past->second.type;
        }
        if (shape_.cache.size() != 2 * (layer + 1)) break;
    }
    const auto known = shape_.cache.size() + 5 + (shape_.has_prefix ? 1 : 0);
    if (shape_.cache.empty() || shape_.cache.size() % 2 != 0 || known != inputs.size())
        throw UserError(file_ + " has other inputs than ids, positions, lengths and a cache of keys and values");
    if (shape_.cache_type != ort::ElementType::float32 && shape_.cache_type != ort::ElementType::float16)
        throw UserError(file_ + ": the cache is neither float32 nor float16");
}

void Graph::bind_cache(const std::vector<TensorView>& tensors) {
    for (const auto& tensor : tensors) {
        bind(("past." + std::string(tensor.name)).c_str(), tensor, false);
        bind(("present." + std::string(tensor.name)).c_str(), tensor, true);
    }
}

void Graph::run(const std::vector<TensorView>& inputs, const TensorView& logits) {
    for (const auto& input : inputs) bind(input.name, input, false);
    bind(logits.name, logits, true);
    runtime_.check(runtime_.api().RunWithBinding(session_.get(), nullptr, binding_.get()), file_);
}

Graph::Owned<ort::Value> Graph::value(const TensorView& tensor) const {
    ort::Value* made = nullptr;
    runtime_.check(
        runtime_.api().CreateTensorWithDataAsOrtValue(memory_.get(), tensor.data, tensor.bytes, tensor.dims.data(),
                                                      tensor.dims.size(), tensor.type, &made),
        file_);
    return {made, runtime_.api().ReleaseValue};
}

// The binding keeps what it is given alive.
void Graph::bind(const char* name, const TensorView& tensor, bool is_output) {
    const auto& api = runtime_.api();
    const auto bound = value(tensor);
    runtime_.check((is_output ? api.BindOutput : api.BindInput)(binding_.get(), name, bound.get()), file_);
}

}  // namespace lit_sft
