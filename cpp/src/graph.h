#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "runtime.h"

namespace lit_sft {

/// Keys or values of one layer in the cache: [rows, heads, capacity, dim].
struct CacheTensor {
    std::string name;  ///< such as `0.key`: input `past.0.key`, output `present.0.key`
    std::size_t heads = 0;
    std::size_t dim = 0;

    bool operator==(const CacheTensor&) const = default;
};

/// What the inputs and outputs of the graph say of the network.
struct GraphShape {
    std::vector<CacheTensor> cache;
    ort::ElementType cache_type = ort::ElementType::float32;
    std::size_t vocabulary = 0;
    bool has_prefix = false;  ///< the prompt sees itself in both directions (ChatGLM-6B)

    [[nodiscard]] std::size_t element_bytes() const { return cache_type == ort::ElementType::float16 ? 2 : 4; }
    /// Of the cache, for one token of one row.
    [[nodiscard]] std::size_t bytes_per_token() const;
};

/// A tensor that belongs to somebody else.
struct TensorView {
    const char* name;
    void* data;
    std::size_t bytes;
    std::vector<std::int64_t> dims;
    ort::ElementType type;
};

/// `model.onnx` in ONNX Runtime.
class Graph {
   public:
    /// @throws UserError where the runtime refuses the file, or it is not a graph that decodes over a cache.
    Graph(const Runtime& runtime, const std::filesystem::path& file, int num_threads);
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    ~Graph();

    [[nodiscard]] const GraphShape& shape() const { return shape_; }

    /// Keys and values that the next runs read and write, in place.
    void bind_cache(const std::vector<TensorView>& tensors);

    /// One step; `logits` is written.
    void run(const std::vector<TensorView>& inputs, const TensorView& logits);

   private:
    template <class T>
    using Owned = std::unique_ptr<T, void (*)(T*)>;

    void open(const std::filesystem::path& file, int num_threads);
    void read_shape();
    [[nodiscard]] Owned<ort::Value> value(const TensorView& tensor) const;
    void bind(const char* name, const TensorView& tensor, bool is_output);

    const Runtime& runtime_;
    std::string file_;
    Owned<ort::Session> session_;
    Owned<ort::IoBinding> binding_;
    Owned<ort::MemoryInfo> memory_;
    GraphShape shape_;
};

}  // namespace lit_sft
