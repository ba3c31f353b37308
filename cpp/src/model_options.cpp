#include "model_options.h"

#include <iostream>

namespace lit_sft {

void ModelArguments::add_to(CLI::App& app) {
    app.add_option("--model", folder_, "folder that lit_sft export has written")->required();
    app.add_option("--runtime", options_.runtime,
                   "ONNX Runtime: libonnxruntime.so, or its folder; else $LIT_SFT_ORT, else beside this program");
    app.add_option("--threads", options_.num_threads, "threads of a product; as many as there are cores if not given")
        ->check(CLI::Range(1, 1024));
    app.add_option("--parallel", options_.max_rows, "answers that are written at once")->check(CLI::Range(1, 1024));
    app.add_flag("--quiet", is_quiet_, "do not tell what the model takes");
}

std::unique_ptr<Model> ModelArguments::open() const {
    if (!is_quiet_) std::cerr << memory_of(folder_, options_.max_rows) << '\n';
    return std::make_unique<Model>(folder_, options_);
}

}  // namespace lit_sft
