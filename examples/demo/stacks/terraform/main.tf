variable "spacelift_run_id" {
  type        = string
  description = "Every run gets it, as TF_VAR_spacelift_run_id."
}

resource "terraform_data" "greeting" {
  input = "Hello from run ${var.spacelift_run_id}"
}

output "greeting" {
  value = terraform_data.greeting.output
}
