terraform {
  # OpenTofu of any version does as well.
  required_version = ">= 0.15"

  required_providers {
    aws = {
      source = "hashicorp/aws"
      # Queries in alarms have a period of their own since 2023 (hashicorp/terraform-provider-aws, pull request 29896).
      version = ">= 5.0"
    }
  }
}
