#include "model.h"

#include "lit_sft/error.h"
#include "machine.h"
#include "manifest.h"

namespace lit_sft {
namespace {

namespace fs = std::filesystem;

const fs::path& checked(const fs::path& folder) {
    std::error_code failed;
    if (!fs::is_directory(folder, failed)) throw UserError(folder.string() + " is not a folder");
    for (const char* name : {"generation.json", "model.onnx", "manifest.json"})
        if (!fs::is_regular_file(folder / name, failed))
            throw UserError(folder.string() + " holds no " + name + "; write it with: lit_sft export --output " +
                            folder.string());
    check_manifest(folder);
    return folder;
}

/// Of the files that the graph reads.
std::size_t weight_bytes(const fs::path& folder) {
    std::error_code failed;
    std::size_t sum = 0;
    for (const auto& entry : fs::directory_iterator(folder, failed))
        if (entry.path().filename().string().starts_with("model.onnx") && entry.is_regular_file(failed))
            sum += entry.file_size(failed);
    return sum;
}

}  // namespace

Model::Model(const fs::path& folder, const ModelOptions& options)
    : num_threads_(options.num_threads > 0 ? options.num_threads : physical_cores()),
      generation_(read_generation(checked(folder))),
      text_(folder),
      runtime_(find_runtime(options.runtime)),
      network_(runtime_, folder / "model.onnx", num_threads_),
      engine_(network_, {.context_length = generation_.context_length,
                         .max_rows = options.max_rows,
                         .prefix_end_id = generation_.prefix_end_id}) {
    check_graph(generation_, network_.shape(), folder);
}

std::string memory_of(const fs::path& folder, std::size_t max_rows) {
    const auto generation = read_generation(folder);
    const GraphShape shape{.cache = generation.cache, .cache_type = generation.cache_type};
    const auto cache = max_rows * generation.context_length * shape.bytes_per_token();
    return "weights " + megabytes(weight_bytes(folder)) + ", cache up to " + megabytes(cache) + " (" +
           std::to_string(max_rows) + " x " + std::to_string(generation.context_length) + " tokens); " +
           megabytes(available_memory()) + " are free";
}

}  // namespace lit_sft
